"""Puts the pictures that are drawn from the code into the HTML itself, so that they follow the page's dark mode.

Markdown names them as images (``![Title](states.svg)``), so that they show without a build too. A picture in an ``img``
knows the colours of the system, and not those that the reader has chosen for the page.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

_DRAWN = '<svg xmlns="http://www.w3.org/2000/svg" class="drawing'


class InlineDrawings(SphinxPostTransform):
    """Replace each image node of a drawn SVG by the SVG's own elements."""

    default_priority = 5  # before Sphinx copies images
    builders = ("html", "dirhtml")

    def run(self, **kwargs: Any) -> None:
        """Replace them in one page."""
        for image in list(self.document.findall(nodes.image)):
            file = Path(self.env.srcdir) / image["uri"]
            if file.suffix == ".svg" and file.is_file() and _DRAWN in (text := file.read_text(encoding="utf-8")):
                label = html.escape(image.get("alt", ""))
                figure = f'<div class="drawing-frame" role="img" aria-label="{label}">{text}</div>'
                image.replace_self(nodes.raw("", figure, format="html", classes=["no-search"]))


def setup(app: Any) -> dict[str, bool]:
    """Sphinx: register the transform."""
    app.add_post_transform(InlineDrawings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
