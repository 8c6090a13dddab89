"""Every line of behaviour that is built has a test, and no test claims a line that is not built.

``docs/_ext/lines.py`` draws the table of lines and tests into the docs. These tests use that module, and check it.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from types import ModuleType

import pytest

from tests.docs.pages import ROOT
from tests.http.variants import CAPABILITIES


@cache
def collector() -> ModuleType:
    """The module ``docs/_ext/lines.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("lines_of_behaviour", ROOT / "docs" / "_ext" / "lines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _built(status: str) -> bool:
    return status != "not yet"


def test_every_line_that_is_built_has_a_test() -> None:
    """Also a line that is built partly."""
    proven = {proof.line for proof in collector().proofs()}
    built = {line for line, status in collector().statuses().items() if _built(status)}
    assert sorted(built - proven) == []
    assert len(built) > 50


def test_no_docstring_names_a_line_that_does_not_exist() -> None:
    """The docstring of a test, a fixture, a class or a module."""
    known = collector().statuses()
    assert [mention for mention in collector().mentions() if mention.line not in known] == []


def test_no_test_claims_a_line_that_is_not_built() -> None:
    """The reference has to be updated with the code."""
    statuses = collector().statuses()
    assert [proof for proof in collector().proofs() if not _built(statuses.get(proof.line, "yes"))] == []


@pytest.mark.parametrize(
    ("docstring", "lines"),
    [
        ("B-08: again.", ["B-08"]),
        ("Nothing of ours: UTF-8, SHA-256, RFC 9457.", []),
        ("O-02, O-08 to O-10.", ["O-02", "O-08", "O-09", "O-10"]),
        ("B-08a (and B-08b).", ["B-08a", "B-08b"]),
        ("H-99 to H-100: not ours.", ["H-99", "H-100"]),
        ("Twice R-01, R-01.", ["R-01"]),
        (None, []),
    ],
)
def test_lines_are_found_in_a_docstring(docstring: str | None, lines: list[str]) -> None:
    """Alone and as a range, known or not."""
    assert collector().named(docstring, list(collector().statuses())) == lines


def test_the_adapters_are_those_of_the_suite() -> None:
    """The source that is read agrees with the tests that pytest runs."""
    assert collector().adapters() == dict(CAPABILITIES)


MODULE = """
pytestmark = [on_memory_only]

@needs("routes", "users")
def test_marked(new_case): ...

def test_plain(new_case): ...

def test_alone(): ...
"""


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("test_marked", "starlette, fastapi, flask, django-wsgi, django-asgi, rest-framework; memory"),
        ("test_plain", "every adapter; memory"),
        ("test_alone", "in process"),
    ],
)
def test_where_a_test_runs_follows_from_its_marks(name: str, place: str) -> None:
    """Its own marks, its module's, and those named in the suite's tables."""
    tree = ast.parse(MODULE)
    (test,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert collector().runs_on("tests/http/test_of_mine.py", tree, test) == place


def test_every_folder_of_tests_says_where_it_runs() -> None:
    """A new folder needs an entry."""
    places = collector().PLACES
    for proof in collector().proofs():
        assert any(proof.test.startswith(place) for place in places), proof.test
