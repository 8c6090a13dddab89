"""SIGKILL between two stages, in each framework and on each backend: the retry resumes, and no effect happens twice."""

from __future__ import annotations

import pytest

from tests.crash.applications import EVERYTHING_ONCE, Client, Site

# The moment of death, and which effects the dead worker has then recorded as stages.
MOMENTS = {"before-charge": ["reserve"], "before-receipt": ["reserve", "charge"]}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_killed_between_two_stages_is_resumed_by_another(application: str, site: Site, moment: str) -> None:
    """L-02, O-03, O-09, O-02: 409 while the lease lasts, then the rest of the stages, then replays."""
    client = Client()
    with site.start(application, SHOP_DIE=moment) as doomed, site.start(application) as successor:
        doomed.wait_until_it_serves()
        successor.wait_until_it_serves()

        assert client.post(doomed) is None
        assert doomed.wait_until_killed(), doomed.log
        left = site.left_in_progress()
        resumed = client.post_until_admitted(successor)
        replay = client.post_until_admitted(successor)

        assert site.was_waited_for(left), "it ran beside a lease that had not ended"
        assert resumed.status == 201, successor.log
        assert resumed.header("Idempotent-Replayed") is None
        before = [(effect, doomed.pid) for effect in MOMENTS[moment]]
        after = [(effect, successor.pid) for effect in ["reserve", "charge", "receipt"][len(before) :]]
        assert site.effects() == before + after
        assert site.books() == EVERYTHING_ONCE
        assert (replay.status, replay.body) == (201, resumed.body)
        assert replay.header("Location") == resumed.header("Location")
        assert replay.header("Idempotent-Replayed") == "true"


def test_a_retry_while_the_lease_lasts_says_when_to_come_back(application: str, sqlite_site: Site) -> None:
    """O-03: the dead worker's request is still `in-progress`, with Retry-After within the lease and a second."""
    client = Client()
    # No test waits for its end, so the lease may be long enough for any machine.
    long = {"IDEMPOTENCY_LEASE": "60"}
    with (
        sqlite_site.start(application, SHOP_DIE="before-charge", **long) as doomed,
        sqlite_site.start(application, **long) as successor,
    ):
        doomed.wait_until_it_serves()
        successor.wait_until_it_serves()
        client.post(doomed)
        assert doomed.wait_until_killed(), doomed.log

        reply = client.post_until(successor, lambda reply: reply.status != 503)

        assert reply.status == 409
        assert reply.header("Content-Type") == "application/problem+json"
        assert b"urn:problem-type:open-idempotency:in-progress" in reply.body
        assert 1 <= int(reply.header("Retry-After") or 0) <= 61
