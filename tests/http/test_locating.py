"""An operator finds the record of a key as a request found it, on every adapter that exposes its application."""

from __future__ import annotations

import logging
import re

import pytest

from open_idempotency import idem, operations
from open_idempotency._core.commands import Claim
from tests.http.behaviours import Call, Reply, Run
from tests.http.conftest import NewCase
from tests.http.endpoints import Steps, charge
from tests.http.sites import Case
from tests.http.variants import needs, on_memory_only

pytestmark = on_memory_only


def _claimed(case: Case) -> str:
    """The id of the record that the case's last request claimed."""
    return [command for command in case.commands if isinstance(command, Claim)][-1].record_id.hex()


def _skip_projects(case: Case) -> None:
    if case.site.adapter.startswith("django") or case.site.adapter == "rest-framework":
        pytest.skip("the settings of these projects are in force while they are made only; see tests/operations")


def test_a_key_leads_to_the_record_of_its_credentials(new_case: NewCase) -> None:
    """P-03: the operator passes them as the client sent them."""
    case = new_case(charge)
    _skip_projects(case)
    case.send(headers=[("Authorization", "Bearer anna")])
    located = operations.locate(case.app, case.key, authorization="Bearer anna")
    assert [each.record for each in located] == [_claimed(case)]
    assert located[0].caller == "credentials"


@needs("users")
def test_a_key_leads_to_the_record_of_a_user(new_case: NewCase) -> None:
    """P-03: the framework's verified user takes precedence."""
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
    """P-03, O-15: with the path the key leads to the record."""
    case = new_case(charge, "by route")
    _skip_projects(case)
    case.send(path="/a%20b/c?q=1")
    with pytest.raises(operations.CallerNeeded, match="scope_by_route"):
        operations.locate(case.app, case.key)
    located = operations.locate(case.app, case.key, method="post", path="/a%20b/c?q=1")
    assert [each.record for each in located] == [_claimed(case)]


def test_the_key_alone_leads_to_its_record_in_the_backend(new_case: NewCase) -> None:
    """P-04: whichever caller sent it."""
    case = new_case(charge)
    _skip_projects(case)
    case.send(headers=[("Authorization", "Bearer anna")])
    backend = case.watched
    assert operations.find_key(backend, case.app, case.key).record_id.hex() == _claimed(case)


def test_the_reference_of_a_problem_leads_to_the_log_line_and_the_line_to_the_record(
    new_case: NewCase, caplog: pytest.LogCaptureFixture
) -> None:
    """P-06: an operator has the client's reference, the log, and the backend."""
    case = new_case(charge, "unheard")
    with caplog.at_level(logging.INFO, "open_idempotency"):
        case.send()
        problem = case.send(body=b"another").json()
        lines = [record.getMessage() for record in caplog.records if problem["reference"] in record.getMessage()]
    assert len(lines) == 1
    named = re.search(r"record='([0-9a-f]{12})'", lines[0])
    assert named is not None
    backend = case.watched
    assert operations.find_record(backend, named[1]).record_id.hex() == _claimed(case)


def recording(call: Call) -> Steps:
    """Responds with the record under which it runs, as its own log lines show it."""
    yield Run("noted", lambda: idem.record)
    return Reply(201, [], idem.record.encode())


def test_a_view_knows_its_record_as_the_log_shows_it(new_case: NewCase) -> None:
    """P-06: so a line of the application's own log leads to the record too."""
    case = new_case(recording)
    shown = case.send().text
    assert len(shown) == 12
    assert _claimed(case).startswith(shown)
