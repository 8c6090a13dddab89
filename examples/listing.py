"""The code of an example, as the demo prints it: whole functions, with the path and the line numbers."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import NamedTuple

from examples.workers import ROOT


class Listing(NamedTuple):
    """Lines of a file. ``path``: relative to the repository. ``first``: the number of the first line."""

    path: str
    first: int
    lines: list[str]

    @property
    def title(self) -> str:
        """The path and the range of lines."""
        return f"{self.path}, lines {self.first} to {self.first + len(self.lines) - 1}"

    def numbered(self) -> list[tuple[int, str]]:
        """The lines with their numbers."""
        return list(enumerate(self.lines, self.first))

    def places_of(self, text: str) -> list[str]:
        """Path and number of each line that contains the text."""
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
