"""The code of an example, as the demo shows it: whole functions, with the path and the numbers of their lines."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import NamedTuple

from examples.workers import ROOT


class Listing(NamedTuple):
    """Some lines of a file. ``path``: below the repository. ``first``: the number of the first of them."""

    path: str
    first: int
    lines: list[str]

    @property
    def title(self) -> str:
        """Where this code is to be found."""
        return f"{self.path}, lines {self.first} to {self.first + len(self.lines) - 1}"

    def numbered(self) -> list[tuple[int, str]]:
        """The lines with their numbers."""
        return list(enumerate(self.lines, self.first))

    def places_of(self, text: str) -> list[str]:
        """Where the text occurs."""
        return [f"{self.path}, line {number}" for number, line in self.numbered() if text in line]


def functions(path: str, names: Iterable[str]) -> list[Listing]:
    """The functions of these names, with their decorators.

    The file is read and not imported: an import opens the databases of the shop.
    """
    source = (ROOT / path).read_text(encoding="utf-8")
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    by_name = {node.name: node for node in nodes}
    return [_listing(path, source.splitlines(), by_name[name]) for name in names]


def _listing(path: str, lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> Listing:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return Listing(path, first, lines[first - 1 : node.end_lineno])
