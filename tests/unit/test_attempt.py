"""Every module may read an attempt's attributes; only the attempt's own methods change them."""

from __future__ import annotations

import ast
from pathlib import Path

import open_idempotency
from open_idempotency._core import attempt
from open_idempotency._core.attempt import Attempt

_PACKAGE = Path(open_idempotency.__file__).parent
_FIELDS = {name for name in Attempt.__annotations__ if not name.startswith("_")} | {"policy"}


def _assigned(source: str) -> set[str]:
    """The assignments in a module to an attribute that an attempt has, on an object other than ``self``."""
    stores = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    found = {ast.unparse(node) for node in stores if isinstance(node.ctx, ast.Store) and node.attr in _FIELDS}
    return {each for each in found if each.count(".") > 1 or not each.startswith("self.")}


def test_no_module_assigns_to_an_attribute_of_an_attempt() -> None:
    """Each change is a method call that can be searched for. Backends are exempt: their records have stages too."""
    modules = [path for path in _PACKAGE.rglob("*.py") if "backends" not in path.parts]
    modules.remove(Path(attempt.__file__))
    found = {str(path): _assigned(path.read_text(encoding="utf-8")) for path in modules}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_an_assignment_in_any_form_would_be_found() -> None:
    source = "attempt.keep = here().lost = 1\nx, self._attempt.alone = 1, 2\nattempt.scope_id += b''\nself.lease = None"
    assert _assigned(source) == {"attempt.keep", "here().lost", "self._attempt.alone", "attempt.scope_id"}
