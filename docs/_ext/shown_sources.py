"""Takes the hidden blocks out of the sources that a reader, or a language model, gets to see.

They set up and check the visible examples, and stand in comments of the pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_HIDDEN = re.compile(r"^<!-- hidden \w+\n.*?^-->[ \t]*\n\n?", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"^<!-- (?:drawn|results): .*? -->\n\n?|^<!-- end -->\n\n?", re.MULTILINE)
_TOCTREE = re.compile(r"^```\{toctree\}\n.*?^```\n\n?", re.MULTILINE | re.DOTALL)
_FRONT = re.compile(r"\A---\n.*?^---\n\n?", re.MULTILINE | re.DOTALL)


def shown(text: str) -> str:
    """A page's Markdown without what is there for machines only."""
    for pattern in (_FRONT, _HIDDEN, _MARK, _TOCTREE):
        text = pattern.sub("", text)
    return text


def clean(app: Any, exception: Exception | None) -> None:
    """Rewrite the copies in ``_sources``."""
    if exception is None and app.builder.format == "html":
        for page in (Path(app.outdir) / "_sources").rglob("*.md.txt"):
            page.write_text(shown(page.read_text(encoding="utf-8")), encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Sphinx: run before llms.txt is made of the sources."""
    app.connect("build-finished", clean, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
