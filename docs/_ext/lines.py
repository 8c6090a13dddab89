"""Which test proves which line of behaviour, and where it runs: read from the sources of the tests.

A test names its lines in its docstring, alone ("B-08") or as a range ("O-08 to O-10"). What a test of tests/http runs
on follows from its marks and the tables in tests/http/variants.py; elsewhere the folder says it. Nothing is imported,
so that the docs can be built without the tests' dependencies.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
BEHAVIOUR = ROOT / "docs" / "reference" / "behaviour.md"
VARIANTS = ROOT / "tests" / "http" / "variants.py"
SHIPPED = "src/open_idempotency/conformance/"

_ROW = re.compile(r"^\| ([A-Z]-\d\w*) \|.*\| ([^|]+) \|$", re.MULTILINE)
_LINE = re.compile(r"\b([BHLNOPRST]-\d\w*)(?: to ([BHLNOPRST]-\d\w*))?")

#: where the tests below a path run; the longest path that fits counts
PLACES: Mapping[str, str] = {
    SHIPPED: "every backend, sync and async",
    "tests/callers/": "the examples of docs/callers, in each framework",
    "tests/conformance/": "the conformance command",
    "tests/backends/": "the backends that it names",
    "tests/backends/test_contract.py": "that backend, sync and async",
    "tests/backends/memory/": "memory",
    "tests/backends/redis/": "redis",
    "tests/backends/django_orm/": "django",
    "tests/backends/postgres/": "postgres",
    "tests/backends/sqlalchemy/": "sqlalchemy",
    "tests/backends/sqlite/": "sqlite",
    "tests/crash/": "the examples, in processes that are killed",
    "tests/docs/": "the docs",
    "tests/examples/": "every example",
    "tests/faults/": "real faults, on the backends that it names",
    "tests/formats/": "every store, as earlier versions left it",
    "tests/fuzz/": "generated input",
    "tests/history/": "real servers under load that are killed",
    "tests/http/": "in process",
    "tests/ledger/": "every kind of transaction",
    "tests/once/": "every backend, sync, asyncio and trio",
    "tests/once/test_recipes.py": "the libraries that it names",
    "tests/packaging/": "the built package",
    "tests/proof/": "workers that are killed around a transaction",
    "tests/property/": "generated histories, on the backends that it names",
    "tests/simulation/": "simulated histories",
    "tests/unit/": "unit",
    "tests/wire/": "the servers that it names",
}
#: what a test of the two matrices asks for
_MATRIX = {"tests/http/": {"new_case", "site"}, "tests/wire/": {"new_case", "native_case", "served"}}

Test = ast.FunctionDef | ast.AsyncFunctionDef


class Proof(NamedTuple):
    """A test that names a line."""

    line: str
    test: str
    runs_on: str


class Mention(NamedTuple):
    """A docstring that names a line, of whatever it is."""

    line: str
    where: str


def statuses() -> dict[str, str]:
    """Every line of the reference, in its order, with what its last column says of it."""
    return dict(_ROW.findall(BEHAVIOUR.read_text(encoding="utf-8")))


def sources() -> list[Path]:
    """Every file whose docstrings may name lines."""
    return sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / SHIPPED).glob("*.py")])


def named(docstring: str | None, known: list[str]) -> list[str]:
    """The lines that a docstring names, each once. Of a range those that are known, and both of its ends."""
    found: dict[str, None] = {}
    for first, last in _LINE.findall(docstring or ""):
        found[first] = None
        if last:
            found.update(dict.fromkeys(line for line in known if first < line < last))
            found[last] = None
    return list(found)


def mentions() -> list[Mention]:
    """Every line that some docstring names."""
    known = list(statuses())
    found: list[Mention] = []
    for path in sources():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Module | ast.ClassDef | Test):
                where = f"{_name(path)}::{getattr(node, 'name', '')}"
                found += [Mention(line, where) for line in named(ast.get_docstring(node), known)]
    return found


@cache
def proofs() -> list[Proof]:
    """Every test with a line that it names, in the order of files and of tests in them."""
    known = list(statuses())
    found: list[Proof] = []
    for path in sources():
        tree = _tree(path)
        for name, node in _tests(tree):
            lines = named(ast.get_docstring(node), known)
            if lines:
                place = runs_on(_name(path), tree, node)
                found += [Proof(line, f"{_name(path)}::{name}", place) for line in lines]
    return found


def _tests(tree: ast.Module) -> Iterator[tuple[str, Test | ast.ClassDef]]:
    """The tests of a module, and the classes that are tests by what they inherit."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, Test) and item.name.startswith("test_")]
            yield from ((f"{node.name}::{method.name}", method) for method in methods)
            if node.name.startswith("Test") and not methods:
                yield node.name, node
    yield from ((node.name, node) for node in tree.body if isinstance(node, Test) and node.name.startswith("test_"))


def runs_on(path: str, tree: ast.Module, test: Test | ast.ClassDef) -> str:
    """Where a test runs, in words."""
    asked = {argument.arg for argument in test.args.args} if isinstance(test, Test) else set[str]()
    for folder, fixtures in _MATRIX.items():
        if path.startswith(folder) and asked & fixtures:
            return _IN_MATRIX[folder](_marks(tree, test))
    return PLACES[max((place for place in PLACES if path.startswith(place)), key=len, default=SHIPPED)]


def _on_adapters(marks: list[tuple[str, list[str]]]) -> str:
    needed = {capability for name, given in marks if name == "needs" for capability in given}
    allowed = [given for name, given in marks if name == "on_backends"]
    every = adapters()
    able = [adapter for adapter, can in every.items() if needed <= can]
    backends = [name for name in _variants()["BACKENDS"] if all(name in given for given in allowed)]
    who = "every adapter" if len(able) == len(every) else ", ".join(able)
    return f"{who}; {'every backend' if not allowed else ', '.join(backends)}"


def _on_servers(marks: list[tuple[str, list[str]]]) -> str:
    needed = [capability for name, given in marks if name == "wire_needs" for capability in given]
    return "every server" if not needed else f"every server that has: {', '.join(needed)}"


_IN_MATRIX = {"tests/http/": _on_adapters, "tests/wire/": _on_servers}


def adapters() -> dict[str, frozenset[str]]:
    """The adapters of the HTTP suite, with what each can do."""
    table = _variants()["CAPABILITIES"]
    return {name: frozenset(can) for name, can in table.items()}


def _variants() -> dict[str, dict[str, set[str]]]:
    """The two literal tables of the HTTP suite."""
    tables = {}
    for node in _tree(VARIANTS).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id in ("BACKENDS", "CAPABILITIES"):
                tables[target.id] = ast.literal_eval(_Bare().visit(node.value))
    return tables


class _Bare(ast.NodeTransformer):
    """``frozenset({...})`` as the literal in it."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        return node.args[0]


def _marks(tree: ast.Module, test: Test | ast.ClassDef) -> list[tuple[str, list[str]]]:
    """The marks of a test and its module: name and arguments. A name stands for what the variants' module says."""
    expressions = [*test.decorator_list, *_assigned(tree, "pytestmark")]
    shared = _tree(VARIANTS)
    found = []
    for expression in expressions:
        for call in _assigned(shared, expression.id) if isinstance(expression, ast.Name) else [expression]:
            if isinstance(call, ast.Call):
                name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                found.append((name, [str(a.value) for a in call.args if isinstance(a, ast.Constant)]))
    return found


def _assigned(tree: ast.Module, name: str) -> list[ast.expr]:
    """What a module assigns to a name; the members of a list."""
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == [name]
    ]
    return [item for value in values for item in (value.elts if isinstance(value, ast.List) else [value])]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def as_tables() -> str:
    """For each line a heading and a table of its tests."""
    by_line: dict[str, list[Proof]] = {line: [] for line in statuses()}
    for proof in proofs():
        by_line.setdefault(proof.line, []).append(proof)
    return "\n".join(f"## {line}\n\n{_table(status, by_line[line])}" for line, status in statuses().items())


def _table(status: str, found: list[Proof]) -> str:
    if not found:
        return f"Built: {status}. No test.\n"
    rows = "".join(f"| `{proof.test}` | {proof.runs_on} |\n" for proof in found)
    return f"Built: {status}.\n\n| Test | Runs on |\n| --- | --- |\n{rows}"
