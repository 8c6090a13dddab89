"""The page of the Python API names every name that users may import, and no private one."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

PACKAGE = ROOT / "src" / "open_idempotency"
PAGE = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")

#: run by Python, Django or the command line; users import nothing from them
NOT_IMPORTED = {"open_idempotency.__main__", "open_idempotency.cli", "open_idempotency.pytest_plugin"}


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _exported(path: Path) -> list[str] | None:
    """``__all__`` of a module, read without importing it: some modules need Django's settings."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
            exported: list[str] = ast.literal_eval(node.value)
            return exported
    return None


_NAMED = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {module: _exported(path) for module, path in _NAMED.items() if "._" not in module}
PUBLIC = {module: names for module, names in MODULES.items() if names is not None}
_DIRECTIVES = re.findall(r"^\.\. (?:auto\w+|py:\w+):: ([\w.]+)", PAGE, re.MULTILINE)
_WHOLE_MODULES = set(re.findall(r"^\.\. automodule:: (\S+)\n   :members:$", PAGE, re.MULTILINE))


def _named() -> set[str]:
    """The names on the page: in a directive, in the text, or as a member of a module that it documents whole."""
    members = {f"{module}.{name}" for module in _WHOLE_MODULES for name in PUBLIC[module]}
    return {*_DIRECTIVES, *re.findall(r"`(open_idempotency[\w.]*)`", PAGE), *members}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_page_names_every_public_name(module: str) -> None:
    """Every public name is in the reference."""
    named = _named()
    assert [name for name in PUBLIC[module] if f"{module}.{name}" not in named] == []


def test_every_module_next_to_the_package_says_what_is_public() -> None:
    """A public module has ``__all__``."""
    silent = {module for module, names in MODULES.items() if module.count(".") < 2 and names is None}
    assert silent - NOT_IMPORTED == {"open_idempotency.backends"}  # a folder, of which each store has its own names


def test_the_page_names_nothing_that_is_private() -> None:
    """Names with an underscore or outside of ``__all__`` may change without notice."""
    assert re.findall(r"open_idempotency[\w.]*\._\w+", PAGE) == []
    public = {f"{module}.{name}" for module, names in PUBLIC.items() for name in names}
    assert {name for name in _named() if name not in public and name not in PUBLIC} == set()


@pytest.mark.parametrize("target", [name for name in _DIRECTIVES if "spectacular" not in name])
def test_every_name_on_the_page_can_be_imported_and_has_a_docstring(target: str) -> None:
    """The paths on the page can be used in an import."""
    if target in PUBLIC:
        assert importlib.import_module(target).__doc__
        return
    module, _, name = target.rpartition(".")
    public = getattr(importlib.import_module(module), name)
    assert (public.__doc__ or "").strip() or not isinstance(public, type)
