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
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Parts of a page, which the benchmark writes.
exclude_patterns = ["benchmarks/*.md"]

nitpicky = True
# Other projects' names, of which there is no inventory without a network.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(asyncio|asyncpg|celery|collections|contextlib|datetime|kombu|typing)\..*",
    ),
    (
        "py:.*",
        r"(.*\.)?(Any|AnyPool|Celery|Follower|GroupResult|P|R|R_co|Signature|T|Task|TaskRow)",
    ),
    # Celery's own classes, as they are seen by type checkers.
    ("py:.*", r"aioabort\.generics\.Generic\w+"),
    ("py:class", r"aioabort\.producer\.result\.AbortableEagerResult"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}

html_theme = "furo"
html_title = f"aioabort {version}"
