"""With every ``scope=`` of the docs, a request without credentials gets no 500."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import blocks, name_of, pages
from tests.support.prepared import Prepared

SECONDS = 90
# A callable: the ``scope=`` of FastAPI's Depends is a string.
_SCOPE = re.compile(r"\bscope=([a-z_]\w*)|IDEMPOTENCY_SCOPE = (\w+)")


def _named(page: Path) -> list[str]:
    """The callables that the Python blocks of a page pass as ``scope=``."""
    text = "".join(block.text for block in blocks(page) if block.language == "python")
    return [name for match in _SCOPE.findall(text) for name in match if name]


WITH_SCOPES = [page for page in pages() if _named(page)]


@pytest.mark.parametrize("page", WITH_SCOPES, ids=name_of)
def test_a_request_without_credentials_is_not_a_500(page: Path, tmp_path: Path, prepared: Prepared) -> None:
    """O-20: each ``scope=`` of the page refuses it, or names its caller."""
    done = prepared.run("tests.docs.scopes", [str(page)], tmp_path, SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = [line.split(": ") for line in done.stdout.splitlines()]
    assert {name for name, _ in asked} == set(_named(page))
    assert {int(status) for _, status in asked} <= {201, 401, 403}, done.stdout


def test_the_docs_show_scopes() -> None:
    """O-20: the search for such pages finds some."""
    assert len(WITH_SCOPES) >= 5
