"""An operator finds the record of a key as a request found it, on every adapter that shows its application."""

from __future__ import annotations

import pytest

from open_idempotency import operations
from open_idempotency._core.commands import Claim
from tests.http.conftest import NewCase
from tests.http.endpoints import charge
from tests.http.sites import Case
from tests.http.variants import needs, on_memory_only

pytestmark = on_memory_only


def _claimed(case: Case) -> str:
    """The id of the record that the case's last request claimed."""
    return [command for command in case.commands if isinstance(command, Claim)][-1].record_id.hex()


def _skip_projects(case: Case) -> None:
    if case.site.adapter.startswith("django") or case.site.adapter == "rest-framework":
        pytest.skip("the settings of these projects are in force while they are made only; see tests/unit/operations")


def test_a_key_leads_to_the_record_of_its_credentials(new_case: NewCase) -> None:
    """P-03: as the client sent them."""
    case = new_case(charge)
    _skip_projects(case)
    case.send(headers=[("Authorization", "Bearer anna")])
    located = operations.locate(case.app, case.key, authorization="Bearer anna")
    assert [each.record for each in located] == [_claimed(case)]
    assert located[0].caller == "credentials"


@needs("users")
def test_a_key_leads_to_the_record_of_a_user(new_case: NewCase) -> None:
    """P-03: the framework's verified user comes first."""
    case = new_case(charge)
    _skip_projects(case)
    case.send(headers=[("X-User", "anna")])
    located = operations.locate(case.app, case.key, user="anna")
    assert (located[0].record, located[0].caller) == (_claimed(case), "user")


def test_a_key_leads_to_the_record_of_an_anonymous_caller(new_case: NewCase) -> None:
    """P-03: without a caller, and where all callers are one."""
    for variant in ("default", "anonymous"):
        case = new_case(charge, variant)
        _skip_projects(case)
        case.send()
        assert [each.record for each in operations.locate(case.app, f'"{case.key}"')] == [_claimed(case)]


def test_where_records_belong_to_routes_the_path_has_to_be_said(new_case: NewCase) -> None:
    """P-03, O-15: and then it leads to the record."""
    case = new_case(charge, "by route")
    _skip_projects(case)
    case.send(path="/a%20b/c?q=1")
    with pytest.raises(operations.CallerNeeded, match="scope_by_route"):
        operations.locate(case.app, case.key)
    located = operations.locate(case.app, case.key, method="post", path="/a%20b/c?q=1")
    assert [each.record for each in located] == [_claimed(case)]


def test_the_key_alone_leads_to_its_record_in_the_store(new_case: NewCase) -> None:
    """P-04: whoever sent it."""
    case = new_case(charge)
    _skip_projects(case)
    case.send(headers=[("Authorization", "Bearer anna")])
    backend = case.watched
    assert operations.find_key(backend, case.app, case.key).record_id.hex() == _claimed(case)
