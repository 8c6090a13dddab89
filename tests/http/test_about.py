"""What a record says about its request, on every adapter: method, route, caller and worker."""

from __future__ import annotations

import os

from open_idempotency._core.commands import Claim
from open_idempotency._core.keys import CALLER_OCTETS, About
from open_idempotency._runtime import processes
from open_idempotency.backend import Get
from tests.http.conftest import NewCase
from tests.http.endpoints import charge
from tests.http.sites import Case
from tests.http.variants import on_memory_only

#: the template of the one route, as each framework writes it; adapters that are missing here know only the path
TEMPLATES = {
    "asgi": "/charges",
    "starlette": "/{rest:path}",
    "fastapi": "/{rest:path}",
    "wsgi": "/charges",
    "flask": "/<path:rest>",
    "django-wsgi": "<path:rest>",
    "django-asgi": "<path:rest>",
    "rest-framework": "<path:rest>",
}


def _about(case: Case) -> About:
    """The description in the record of the case's last claim."""
    claims = [command for command in case.commands if isinstance(command, Claim)]
    backend = case.watched
    record = backend.get(Get(claims[-1].record_id))
    assert record is not None
    return About.of(record)


def test_a_record_says_what_its_request_was_and_which_worker_has_it(new_case: NewCase) -> None:
    """P-01, P-02: the route as the framework writes it, if it is known before the claim; never the query."""
    case = new_case(charge)
    case.send(path="/charges?token=secret")
    about = _about(case)
    assert (about.method, about.route) == ("POST", TEMPLATES[case.site.adapter])
    assert about.holder == processes.name()
    assert about.holder.endswith(f":{os.getpid()}")


@on_memory_only
def test_the_records_of_one_caller_have_its_digest_in_common(new_case: NewCase) -> None:
    """P-02: another caller has another digest."""
    digests = []
    for caller in ("Bearer anna", "Bearer anna", "Bearer bert"):
        case = new_case(charge)
        case.send(headers=[("Authorization", caller)])
        digests.append(_about(case).caller)
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == CALLER_OCTETS


@on_memory_only
def test_with_encryption_a_record_says_no_path(new_case: NewCase) -> None:
    """P-02: a path may contain personal data; a template does not."""
    case = new_case(charge, "encrypted")
    case.send(path="/people/anna")
    template = TEMPLATES[case.site.adapter]
    assert _about(case).route == ("" if template == "/charges" else template)
