"""The output of the demo: narration, requests as curl commands, responses as ``curl -i`` prints them.

Coloured on a terminal; plain without one, or if NO_COLOR is set.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap

from examples.listing import Listing
from examples.workers import Reply

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_HIGHLIGHTED = {"idempotent-replayed", "retry-after", "location"}
_MARGIN = "    "
_WIDTH = 88


def use_colour() -> bool:
    """Whether to use colours: NO_COLOR and FORCE_COLOR decide, then whether the output is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


class Terminal:
    """Prints the scenes of the demo."""

    def __init__(self) -> None:
        self._colour = use_colour()
        self._after_proof = False
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace", line_buffering=True)

    def style(self, text: str, *styles: str) -> str:
        """The text in these styles, if colours are used."""
        if not self._colour:
            return text
        return f"\x1b[{';'.join(_STYLES[style] for style in styles)}m{text}\x1b[0m"

    def title(self, text: str, below: str) -> None:
        """Print the title of the demo."""
        print(f"\n{self.style(text, 'bold')}\n{self.style(below, 'dim')}")

    def chapter(self, text: str) -> None:
        """Print the title of a scene."""
        self._after_proof = False
        line = "─" * max(0, _WIDTH - len(text) - 4)
        print(f"\n{self.style(f'── {text} {line}', 'bold', 'cyan')}\n")

    def narrate(self, text: str) -> None:
        """Print a few sentences."""
        gap = "\n" if self._after_proof else ""
        self._after_proof = False
        print(gap + textwrap.fill(text, _WIDTH) + "\n")

    def listings(self, listings: list[Listing]) -> None:
        """Print code, each listing below its path, with line numbers."""
        for position, listing in enumerate(listings):
            gap = "\n" if position else ""
            print(gap + _MARGIN + self.style(listing.title, "bold"))
            for number, line in listing.numbered():
                print(f"{_MARGIN}{self.style(f'{number:>4}', 'dim')}  {line}")

    def command(self, url: str, headers: dict[str, str], body: bytes) -> None:
        """Print a POST as the curl command that sends it."""
        parts = [f"curl -i {url}"]
        parts += [f"-H '{name}: {value}'" for name, value in headers.items()]
        parts.append(f"-d '{body.decode()}'")
        print(_MARGIN + self.style("$ " + f" \\\n{_MARGIN}    ".join(parts), "bold"))

    def reply(self, reply: Reply | None) -> None:
        """Print the response, or curl's message if there is none."""
        if reply is None:
            print(_MARGIN + self.style("curl: (52) Empty reply from server", "red") + "\n")
            return
        style = "green" if reply.status < 400 else "yellow" if reply.status < 500 else "red"
        print(_MARGIN + self.style(f"HTTP/1.1 {reply.status} {reply.reason}", "bold", style))
        for name, value in reply.headers:
            styles = ("bold", style) if name.lower() in _HIGHLIGHTED else ("dim",)
            print(_MARGIN + self.style(f"{name}: {value}", *styles))
        print()
        print(textwrap.indent(_readable(reply.body), _MARGIN) + "\n")

    def table(self, rows: list[list[str]]) -> None:
        """Print rows below a header row, in columns."""
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for number, row in enumerate(rows):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            print(_MARGIN + (line if number else self.style(line, "dim")))
        print()

    def proven(self, text: str) -> None:
        """Print a statement that is true."""
        self._after_proof = True
        print(f"  {self.style('✓', 'bold', 'green')} {text}")

    def broken(self, text: str) -> None:
        """Print a statement that is not true."""
        print(f"  {self.style('✗', 'bold', 'red')} {self.style(text, 'bold', 'red')}")


def _readable(body: bytes) -> str:
    """A problem document, which is one long line of JSON, on several lines as ``| jq`` prints it."""
    text = body.decode(errors="replace").rstrip("\n")
    if len(text) <= _WIDTH:
        return text
    try:
        return json.dumps(json.loads(text), indent=2)
    except ValueError:
        return text
