"""Sphinx's settings. Pages are Markdown; what is drawn from the code comes from ``_ext/drawn.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import open_idempotency

project = "open-idempotency"
author = "The open-idempotency developers"
copyright = author
release = version = open_idempotency.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "drawn"]
exclude_patterns = ["_build", "_ext"]
# docs/design holds one page for each decision, and may be empty in a slimmed-down checkout.
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = f"open-idempotency {release}"
