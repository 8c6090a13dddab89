"""SIGKILL before any effect, between an effect and its record, and before the response is sent."""

from __future__ import annotations

from tests.crash.applications import APPLICATIONS, EVERYTHING_ONCE, Client, Site

KILLED_BEFORE_RESPONSE = "tests.crash.killed_before_response"


def test_a_worker_killed_before_any_stage_is_repeated_whole(application: str, sqlite_site: Site) -> None:
    """L-02, O-09: nothing was recorded, so attempt 2 runs every stage."""
    client = Client()
    with (
        sqlite_site.start(application, SHOP_DIE="before-reserve") as doomed,
        sqlite_site.start(application) as successor,
    ):
        doomed.wait_until_it_serves()
        successor.wait_until_it_serves()

        assert client.post(doomed) is None
        left = sqlite_site.left_in_progress()
        repeated = client.post_until_admitted(successor)

        assert sqlite_site.was_waited_for(left)
        assert repeated.status == 201
        assert [effect for effect, _ in sqlite_site.effects()] == ["reserve", "charge", "receipt"]
        assert sqlite_site.books() == EVERYTHING_ONCE


def test_a_worker_killed_between_the_charge_and_its_record_asks_the_provider_again_with_the_same_key(
    application: str, sqlite_site: Site
) -> None:
    """``key_for``: the stage runs again in this gap, and the provider recognises the key."""
    client = Client()
    with (
        sqlite_site.start(application, SHOP_DIE="after-charge") as doomed,
        sqlite_site.start(application) as successor,
    ):
        doomed.wait_until_it_serves()
        successor.wait_until_it_serves()

        assert client.post(doomed) is None
        resumed = client.post_until_admitted(successor)

        assert resumed.status == 201
        assert [effect for effect, _ in sqlite_site.effects()] == ["reserve", "charge", "charge", "receipt"]
        assert sqlite_site.books() == {**EVERYTHING_ONCE, "provider": ["charged", "repeated"]}


def test_a_worker_killed_after_completion_and_before_its_response_left_is_replayed_at_once(
    application: str, site: Site
) -> None:
    """R-03, O-02: the response is recorded before it is sent, so the retry gets it without waiting."""
    client = Client()
    doomed_command = [KILLED_BEFORE_RESPONSE, *APPLICATIONS[application]]
    with site.start_command(doomed_command) as doomed, site.start(application) as successor:
        doomed.wait_until_it_serves()
        successor.wait_until_it_serves()

        assert client.post(doomed) is None
        assert doomed.wait_until_killed(), doomed.log
        reply = client.post_until(successor, lambda reply: reply.status != 503)

        assert (reply.status, reply.header("Idempotent-Replayed")) == (201, "true")
        assert {worker for _, worker in site.effects()} == {doomed.pid}
        assert site.books() == EVERYTHING_ONCE


def sqlite_workers(site: Site) -> list[tuple[str, int]]:
    """The worker of each effect."""
    return site.effects()
