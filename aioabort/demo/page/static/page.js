// The page: starts runs, and shows what the endpoints of aioabort.web return for them.

// The worker stores a task's outcome just after its result: seconds between two
// queries for the outcome, and their maximum number.
const OUTCOME_INTERVAL = 0.3;
const MAX_QUERIES = 10;

// Maximum number of tasks in one event stream.
const MAX_FOLLOWED = 100;

const STOPPED = new Set(["aborted", "returned", "killed"]);
const ENDED = new Set(["stopped", "done", "failed"]);
const ENDINGS = {
  aborted: "it never began",
  returned: "it returned early",
  failed: "it failed",
  killed: "its process was killed",
  unkillable: "it could not be killed",
  too_late: "it ended before it checked",
};

const element = (id) => document.getElementById(id);
const runs = new Map();
let stream = null;

// HTTP requests.

async function send(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The demo does not respond: restart it, then reload this page.");
  }
  const data = await response.json();
  // 409 for a task that has ended, and 404 for one that is still queued, are no errors.
  if (response.ok || response.status === 409 && data.answer || data.task_id) {
    return data;
  }
  throw new Error(data.detail);
}

const path = (run) => `/tasks/${encodeURIComponent(run.task_id)}`;

function follow() {
  stream?.close();
  stream = null;
  // The oldest first, because these run.
  const open = [...runs.values()].filter((run) => !run.snapshot.is_finished);
  if (open.length === 0) {
    return setConnection("live", "nothing runs");
  }
  const query = open.slice(0, MAX_FOLLOWED).map((run) => ["id", run.task_id]);
  stream = new EventSource(`/tasks/events?${new URLSearchParams(query)}`);
  stream.onopen = () => setConnection("live", "live");
  stream.onmessage = ({ data }) => update(JSON.parse(data));
  stream.addEventListener("problem", ({ data }) => {
    const { task_id, detail } = JSON.parse(data);
    showProblem(runs.get(task_id), detail);
  });
  stream.onerror = () => {
    if (open.slice(0, MAX_FOLLOWED).every((run) => run.snapshot.is_finished)) {
      return follow();
    }
    setConnection("wait", "reconnecting");
    if (stream.readyState === EventSource.CLOSED) {
      setTimeout(follow, 2000);
    }
  };
}

function update(snapshot) {
  const run = runs.get(snapshot.task_id);
  run.snapshot = snapshot;
  if (snapshot.state === "PROGRESS" && snapshot.result) {
    run.hashed = snapshot.result.hashed;
  } else if (snapshot.state === "SUCCESS" && !snapshot.request) {
    run.hashed = run.files;
  }
  // The worker stores the outcome just after the task's result.
  const settled = !snapshot.request || snapshot.request.outcome;
  if (snapshot.is_finished && !settled && run.queries++ < MAX_QUERIES) {
    setTimeout(() => refresh(run), OUTCOME_INTERVAL * 1000);
  }
  show(run);
}

async function refresh(run) {
  try {
    update(await send(path(run)));
  } catch (error) {
    showProblem(run, error.message);
  }
}

async function start(event) {
  event.preventDefault();
  const problem = element("start-problem");
  problem.textContent = "";
  const wanted = { path: element("path").value, count: element("count").valueAsNumber };
  try {
    (await send("/runs", wanted)).runs.forEach(add);
    follow();
  } catch (error) {
    problem.textContent = error.message;
  }
}

async function abort(run) {
  run.isAborting = true;
  run.isQueued = run.snapshot.state === "PENDING";
  show(run);
  try {
    const receipt = await send(`${path(run)}/abort`, {
      reason: element("reason").value || null,
      requested_by: element("name").value || null,
    });
    if (receipt.answer === "finished") {
      return refresh(run);
    }
    // An event may have brought a newer request by now.
    run.snapshot.request ??= receipt.request;
  } catch (error) {
    run.isAborting = false;
    showProblem(run, error.message);
  }
  show(run);
}

// The cards of the runs.

function add(started) {
  const card = element("run").content.firstElementChild.cloneNode(true);
  const run = { ...started, card, hashed: 0, queries: 0, isAborting: false, isQueued: false,
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
  button.disabled = run.isAborting || run.snapshot.request !== null;
  if (run.snapshot.request) {
    showRequest(run, run.snapshot.request);
  }
  if (before !== now) {
    summarize();
    if (now === "stopped") {
      element("news").textContent = `Run ${run.number} has stopped`;
    }
  }
}

function showRequest(run, request) {
  part(run, ".story").hidden = false;
  const requestedAt = new Date(request.requested_at);
  const why = request.reason ? `: “${request.reason}”` : "";
  showStep(run, "requested", clock(requestedAt), `by ${request.requested_by ?? "unknown"}${why}`);
  if (request.seen_at) {
    showStep(run, "seen", after(requestedAt, request.seen_at), `by ${request.seen_by}`);
  } else {
    const waits = run.isQueued && !request.outcome_at;
    part(run, "[data-step=seen] span").textContent = waits ? "when the worker takes it" : "";
  }
  if (request.outcome_at) {
    showStep(run, "stopped", after(requestedAt, request.outcome_at), ENDINGS[request.outcome]);
  }
}

function showStep(run, name, when, text) {
  const item = part(run, `[data-step=${name}]`);
  item.dataset.is = "done";
  item.querySelector("time").textContent = when;
  item.querySelector("span").textContent = text;
}

const clock = (moment) =>
  moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit",
                                  fractionalSecondDigits: 3, hourCycle: "h23" });

function after(start, moment) {
  const passed = new Date(moment) - start;
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

function setConnection(kind, text) {
  element("link").dataset.link = kind;
  element("link").textContent = text;
}

function showProblem(run, text) {
  part(run, ".problem").textContent = text;
}

// Set-up.

element("start").addEventListener("submit", start);
element("abort-all").addEventListener("submit", (event) => {
  event.preventDefault();
  [...runs.values()].filter((run) => !isOver(run) && !run.isAborting).forEach(abort);
});

try {
  const state = await send("/runs");
  element("path").value = state.path;
  // Show the end of a long path, not its beginning.
  element("path").scrollLeft = element("path").scrollWidth;
  element("name").value = state.user;
  element("paths").replaceChildren(...state.paths.map((name) => new Option(name, name)));
  state.runs.forEach(add);
  follow();
} catch (error) {
  setConnection("wait", error.message);
}
