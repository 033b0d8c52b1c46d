// The page: what aioabort.web tells of the runs that were started here.

// Seconds in which the worker has recorded how a task ended that has just done so.
const SETTLED_AFTER = 0.3;
const MOST_LOOKS = 10;

// As many as one stream of events tells of.
const MOST_FOLLOWED = 100;

const STOPPED = new Set(["aborted", "returned", "killed"]);
const ENDED = new Set(["stopped", "done", "failed"]);
const ENDINGS = {
  aborted: "it never began",
  returned: "it returned early",
  failed: "it failed",
  killed: "its process was ended",
  unkillable: "it could not be killed",
  too_late: "it ended before it looked",
};

const element = (id) => document.getElementById(id);
const runs = new Map();
let stream = null;

// Talking to the server.

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The demo does not answer: has it been stopped?");
  }
  const answer = await response.json();
  // A task that has ended, and one that is still queued, are no problems here.
  if (response.ok || response.status === 409 && answer.answer || answer.task_id) {
    return answer;
  }
  throw new Error(answer.detail);
}

const path = (run) => `/tasks/${encodeURIComponent(run.task_id)}`;

function follow() {
  stream?.close();
  stream = null;
  // The oldest first: they are those that run.
  const open = [...runs.values()].filter((run) => !run.snapshot.is_finished);
  if (open.length === 0) {
    return link("live", "nothing runs");
  }
  const query = open.slice(0, MOST_FOLLOWED).map((run) => ["id", run.task_id]);
  stream = new EventSource(`/tasks/events?${new URLSearchParams(query)}`);
  stream.onopen = () => link("live", "live");
  stream.onmessage = ({ data }) => told(JSON.parse(data));
  stream.addEventListener("problem", ({ data }) => {
    const { task_id, detail } = JSON.parse(data);
    trouble(runs.get(task_id), detail);
  });
  stream.onerror = () => {
    if (open.slice(0, MOST_FOLLOWED).every((run) => run.snapshot.is_finished)) {
      return follow();
    }
    link("wait", "connecting again");
    if (stream.readyState === EventSource.CLOSED) {
      setTimeout(follow, 2000);
    }
  };
}

function told(snapshot) {
  const run = runs.get(snapshot.task_id);
  run.snapshot = snapshot;
  if (snapshot.state === "PROGRESS" && snapshot.result) {
    run.hashed = snapshot.result.hashed;
  } else if (snapshot.state === "SUCCESS" && !snapshot.request) {
    run.hashed = run.files;
  }
  // The worker records how the request ended just after the task's result.
  const settled = !snapshot.request || snapshot.request.outcome;
  if (snapshot.is_finished && !settled && run.looks++ < MOST_LOOKS) {
    setTimeout(() => look(run), SETTLED_AFTER * 1000);
  }
  show(run);
}

async function look(run) {
  try {
    told(await ask(path(run)));
  } catch (error) {
    trouble(run, error.message);
  }
}

async function start(event) {
  event.preventDefault();
  const problem = element("start-problem");
  problem.textContent = "";
  const wanted = { path: element("path").value, count: element("count").valueAsNumber };
  try {
    (await ask("/runs", wanted)).runs.forEach(add);
    follow();
  } catch (error) {
    problem.textContent = error.message;
  }
}

async function abort(run) {
  run.isAsked = true;
  run.isQueued = run.snapshot.state === "PENDING";
  show(run);
  try {
    const receipt = await ask(`${path(run)}/abort`, {
      reason: element("reason").value || null,
      requested_by: element("name").value || null,
    });
    if (receipt.answer === "finished") {
      return look(run);
    }
    // The stream may have told more in the meantime.
    run.snapshot.request ??= receipt.request;
  } catch (error) {
    run.isAsked = false;
    trouble(run, error.message);
  }
  show(run);
}

// What is shown.

function add(started) {
  const card = element("run").content.firstElementChild.cloneNode(true);
  const run = { ...started, card, hashed: 0, looks: 0, isAsked: false, isQueued: false,
                snapshot: { state: "PENDING", request: null } };
  runs.set(run.task_id, run);
  part(run, ".number").textContent = `#${run.number}`;
  part(run, ".name").textContent = run.path.split("/").pop() || "/";
  part(run, ".path").textContent = run.path;
  part(run, "progress").setAttribute("aria-label", `Progress of run ${run.number}`);
  part(run, "button").setAttribute("aria-label", `Abort run ${run.number}`);
  part(run, "button").addEventListener("click", () => abort(run));
  element("runs").prepend(card);
  show(run);
}

const part = (run, selector) => run.card.querySelector(selector);
const isOver = (run) => ENDED.has(word(run));

function word({ snapshot }) {
  const { state, request, is_finished: isFinished } = snapshot;
  if (STOPPED.has(request?.outcome) || state === "REVOKED") {
    return "stopped";
  }
  if (isFinished) {
    if (state === "FAILURE") {
      return "failed";
    }
    return request && !request.outcome ? "stopping" : "done";
  }
  if (request) {
    return "stopping";
  }
  return state === "PENDING" ? "queued" : "running";
}

function show(run) {
  const before = run.card.dataset.word;
  const now = run.card.dataset.word = word(run);
  part(run, ".word").textContent = now;
  part(run, "progress").max = run.files;
  part(run, "progress").value = run.hashed;
  part(run, ".count").textContent = `${run.hashed} of ${run.files} files`;
  const button = part(run, "button");
  button.hidden = isOver(run);
  button.disabled = run.isAsked || run.snapshot.request !== null;
  if (run.snapshot.request) {
    tell(run, run.snapshot.request);
  }
  if (before !== now) {
    summarize();
    if (now === "stopped") {
      element("news").textContent = `Run ${run.number} has stopped`;
    }
  }
}

function tell(run, request) {
  part(run, ".story").hidden = false;
  const asked = new Date(request.requested_at);
  const why = request.reason ? `: “${request.reason}”` : "";
  step(run, "requested", clock(asked), `by ${request.requested_by ?? "somebody"}${why}`);
  if (request.seen_at) {
    step(run, "seen", after(asked, request.seen_at), `by ${request.seen_by}`);
  } else {
    const waits = run.isQueued && !request.outcome_at;
    part(run, "[data-step=seen] span").textContent = waits ? "when its turn comes" : "";
  }
  if (request.outcome_at) {
    step(run, "stopped", after(asked, request.outcome_at), ENDINGS[request.outcome]);
  }
}

function step(run, name, when, text) {
  const item = part(run, `[data-step=${name}]`);
  item.dataset.is = "done";
  item.querySelector("time").textContent = when;
  item.querySelector("span").textContent = text;
}

const clock = (moment) =>
  moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit",
                                  fractionalSecondDigits: 3, hourCycle: "h23" });

function after(asked, moment) {
  const passed = new Date(moment) - asked;
  return passed < 1000 ? `+${passed} ms` : `+${(passed / 1000).toFixed(1)} s`;
}

function summarize() {
  const words = [...runs.values()].map(word);
  const parts = ["running", "queued", "stopping", "stopped", "done", "failed"]
    .map((name) => [words.filter((each) => each === name).length, name])
    .filter(([count]) => count);
  element("summary").textContent = parts.map((pair) => pair.join(" ")).join(", ");
  element("empty").hidden = runs.size > 0;
  element("abort-all").querySelector("button").disabled =
    !words.some((each) => each === "running" || each === "queued");
}

function link(kind, text) {
  element("link").dataset.link = kind;
  element("link").textContent = text;
}

function trouble(run, text) {
  part(run, ".problem").textContent = text;
}

// The beginning.

element("start").addEventListener("submit", start);
element("abort-all").addEventListener("submit", (event) => {
  event.preventDefault();
  [...runs.values()].filter((run) => !isOver(run) && !run.isAsked).forEach(abort);
});

try {
  const known = await ask("/runs");
  element("path").value = known.path;
  // The end of a path tells more than its beginning.
  element("path").scrollLeft = element("path").scrollWidth;
  element("name").value = known.user;
  element("paths").replaceChildren(...known.paths.map((name) => new Option(name, name)));
  known.runs.forEach(add);
  follow();
} catch (error) {
  link("wait", error.message);
}
