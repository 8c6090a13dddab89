"""Sphinx's settings. Pages are Markdown; what is drawn from the code comes from ``_ext/drawn.py``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import open_idempotency

project = "open-idempotency"
author = "The open-idempotency developers"
copyright = author
release = version = open_idempotency.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_llms_txt",
    "drawn",
    "codes_in_search",
    "pictures",
    "shown_sources",
]
exclude_patterns = ["_build", "_ext"]
# docs/design holds one page for each decision, and may be empty in a slimmed-down checkout.
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"

_REPOSITORY = "https://github.com/open-idempotency/open-idempotency"
_SITE = "https://open-idempotency.readthedocs.io/en/"

html_theme = "furo"
html_title = f"open-idempotency {release}"
# the host of the docs sets it to the version that it builds
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", f"{_SITE}latest/")
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = ["tables.js"]
html_search_scorer = str(Path(__file__).parent / "_ext" / "scorer.js")
html_copy_source = True
html_theme_options = {
    "source_repository": f"{_REPOSITORY}/",
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": ["view", "edit"],
    "footer_icons": [{"name": "Repository", "url": _REPOSITORY, "html": "Repository", "class": ""}],
}

# a prompt and what a command prints are not copied
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

llms_txt_title = "open-idempotency"
llms_txt_summary = (
    "A request that is sent twice runs once: idempotency keys for FastAPI, Starlette, Django, Flask, ASGI and WSGI, "
    "and stages that a retry after a crash skips."
)
llms_txt_exclude = ["reference/lines", "changelog", "genindex", "search"]
