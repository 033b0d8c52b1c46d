"""How the documentation is built."""

from importlib.metadata import version as version_of

project = "aioabort"
author = "The aioabort authors"
copyright = "2026, The aioabort authors"  # noqa: A001 - the name is Sphinx's
version = release = version_of("aioabort")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_reredirects",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Parts of pages, written by the benchmark's report.
exclude_patterns = ["benchmarks/*.md"]

# Old names of pages: each leads to the new one, which stands in the same folder.
redirects = {
    f"{folder}/{old}": f"{new}.html"
    for folder, names in {
        "explanation": {
            "faults": "fault-testing",
            "journey": "how-it-works",
        },
        "how-to": {
            "awaiting": "awaiting-results",
            "backend": "result-backend",
            "callers": "synchronous",
            "choose": "stop-modes",
            "frameworks": "web-frameworks",
            "many": "bulk-and-canvas",
            "migrate": "migrating",
            "testing": "testing-tasks",
            "troubleshoot": "troubleshooting",
            "web": "http-endpoints",
        },
    }.items()
    for old, new in names.items()
}

nitpicky = True
# Names of other projects: to resolve them, Sphinx would need a network.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(asyncio|asyncpg|celery|collections|contextlib|datetime|kombu|typing)\..*",
    ),
    (
        "py:.*",
        r"(.*\.)?(Any|AnyPool|Celery|AbortFollower|GroupResult|P|R|R_co|Signature|T|Task|TaskRow)",
    ),
    # Celery's classes, as type checkers see them.
    ("py:.*", r"aioabort\.celery_compat\.Generic\w+"),
    ("py:class", r"aioabort\.client\.result\.AbortableEagerResult"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}

html_theme = "furo"
html_title = f"aioabort {version}"
