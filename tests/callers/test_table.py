"""The table of ways to identify users: each row has examples, and they check what the row says (O-23).

``tests/docs`` runs the pages of the examples. Who a caller is does not depend on the backend, which is called later;
the examples of Django have their records in Django's own database.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from open_idempotency.starlette import IdempotencyMiddleware
from tests.callers.ways import keeps_apart, over_asgi, shares_nothing
from tests.docs.pages import ROOT, Block, anchor, blocks, headings, links, section

PAGES = {path.name: path for path in (ROOT / "docs" / "callers").glob("*.md")}
TITLE = "How your users are known, and what to write"
STORED, AGAIN, REFUSED, NONE = "the stored response", "runs again", "refused", "\N{EN DASH}"


class Row(NamedTuple):
    """A row of the table; ``examples``: the pages and anchors of its links."""

    known_by: str
    write: str
    renewed: str
    revoked: str
    examples: tuple[tuple[str, str], ...]


def _rows() -> Iterator[Row]:
    text = section(ROOT / "docs" / "security.md", TITLE)
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    for line in lines:
        known_by, write, renewed, revoked, examples = (cell.strip() for cell in line.strip("| ").split(" | "))
        targets = (link.target.removeprefix("callers/").partition("#") for link in links(examples))
        yield Row(known_by, write, renewed, revoked, tuple((page, place) for page, _, place in targets))


ROWS = list(_rows())


def _blocks_of(page: str, place: str) -> list[Block]:
    return [block for block in blocks(PAGES[page]) if anchor(block.heading) == place]


class Check(NamedTuple):
    """One call of a check: whether it has renewed credentials, what a retry with them gets, and whether it revokes
    credentials.
    """

    renewed: str
    revoked: str


def _checks(page: str, place: str) -> list[Check]:
    calls = [
        node
        for block in _blocks_of(page, place)
        for node in ast.walk(ast.parse(block.text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    found = [Check(NONE, NONE) for call in calls if _name(call) == shares_nothing.__name__]
    for call in calls:
        if _name(call) == keeps_apart.__name__:
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            renewed = NONE if said["refreshed"] == "None" else AGAIN if "refresh_replays" in said else STORED
            found.append(Check(renewed, NONE if said["revoke"] == "None" else REFUSED))
    return found


def _name(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Name)
    return call.func.id


@pytest.mark.parametrize("row", ROWS, ids=[row.known_by for row in ROWS])
def test_a_row_has_examples_that_check_what_it_says(row: Row) -> None:
    """O-23: code that a reader sees, and below it two users, with the renewed and revoked credentials that the row
    describes.
    """
    assert row.examples
    for page, place in row.examples:
        own = _blocks_of(page, place)
        assert sum(block.language == "python" for block in own) >= 2, "an example and its check"
        checks = _checks(page, place)
        assert checks, f"{page}#{place} checks nothing"
        assert {check.renewed for check in checks} - {NONE} == {row.renewed} - {NONE}
        assert {check.revoked for check in checks} - {NONE} == {row.revoked} - {NONE}


def test_each_example_is_in_the_table() -> None:
    """O-23: readers find an example only through the table."""
    reported = {example for row in ROWS for example in row.examples}
    there = {(name, anchor(title)) for name, page in PAGES.items() for title in headings(page)[1:]}
    assert reported == there


def test_what_is_to_be_written_is_in_an_example() -> None:
    """O-23: each piece of code of a row is in one of its examples."""
    for row in ROWS:
        texts = "".join(block.text for example in row.examples for block in _blocks_of(*example))
        for code in row.write.split("`")[1::2]:
            assert code.removeprefix("@").rstrip("=") in texts, (row.known_by, code)


# Faults that the checks of the examples find


def _leaky(**fields: Any) -> Any:
    """An application whose callers share their responses, or that does not identify its callers."""
    runs: list[int] = []

    async def charge(request: Request) -> JSONResponse:
        runs.append(1)
        return JSONResponse({"run": len(runs)}, status_code=201)

    app = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
    app.add_middleware(IdempotencyMiddleware, backend="memory://", **fields)
    return over_asgi(app, "/charges")


ANN = {"Authorization": "Bearer ann"}
BOB = {"Authorization": "Bearer bob"}
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one scope for all": ({"scope": lambda request: "all"}, {}),
    "nobody is let in": ({}, {"nobody": {}}),
    "a forged token is let in": ({}, {"forged": {"Authorization": "Bearer forged"}}),
    "a renewed token is another caller": ({}, {"refreshed": {"Authorization": "Bearer ann-2"}}),
    "a revoked token is replayed": ({}, {"revoke": lambda: None}),
}


@pytest.mark.parametrize(("fields", "kinds"), WRONG.values(), ids=WRONG)
def test_the_check_of_the_examples_fails_where_a_promise_is_broken(
    fields: dict[str, Any], kinds: dict[str, Any]
) -> None:
    """O-23: an application that breaks one of the promises does not pass."""
    everybody = {"nobody": None, "forged": None, "refreshed": None, "revoke": None}
    with pytest.raises(AssertionError):
        keeps_apart(_leaky(**fields), ann=ANN, bob=BOB, **{**everybody, **kinds})
    keeps_apart(_leaky(), ann=ANN, bob=BOB, **everybody)


def test_the_check_of_anonymous_callers_fails_where_any_key_is_taken() -> None:
    """O-23: a key that can be guessed is not private."""
    with pytest.raises(AssertionError):
        shares_nothing(_leaky(scope=lambda request: "all"), anyone={})
