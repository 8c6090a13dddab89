"""SIGKILL between an effect and its record, at a service without idempotency keys: the stage is in doubt (S-04)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from examples.workers import Reply
from tests.crash.applications import Client, Site


@pytest.fixture
def doubtful(site: Site) -> Iterator[tuple[Site, ExitStack]]:
    """A site, and what ends its workers."""
    with ExitStack() as workers:
        yield site, workers


def killed_and_retried(site: Site, workers: ExitStack, terms: str, die: str) -> Reply:
    """The second worker's first response that is not the 409 of a running request."""
    client = Client()
    command = ["tests.crash.bank", terms]
    doomed = workers.enter_context(site.start_command(command, SHOP_DIE=die)).wait_until_it_serves()
    successor = workers.enter_context(site.start_command(command)).wait_until_it_serves()
    assert client.post(doomed) is None
    return client.post_until(successor, lambda reply: b"in-progress" not in reply.body)


def test_an_effect_that_may_have_happened_is_not_repeated(doubtful: tuple[Site, ExitStack]) -> None:
    """S-04, I9: 409 ``outcome-unknown`` instead of a second transfer."""
    site, workers = doubtful
    reply = killed_and_retried(site, workers, "external", "after-transfer")
    problem = json.loads(reply.body)
    assert (reply.status, problem["type"].rpartition(":")[2], problem["retryable"]) == (409, "outcome-unknown", False)
    assert [effect for effect, _ in site.effects()] == ["transfer"]


def test_the_bank_is_asked_and_knows_it(doubtful: tuple[Site, ExitStack]) -> None:
    """S-04: Found; the money went once, and the client gets that result."""
    site, workers = doubtful
    reply = killed_and_retried(site, workers, "reconcile", "after-transfer")
    assert (reply.status, reply.body) == (201, b"found on the statement")
    assert [effect for effect, _ in site.effects()] == ["transfer"]


def test_the_bank_is_asked_and_never_saw_it(doubtful: tuple[Site, ExitStack]) -> None:
    """S-04: NOT_DONE; the worker died between the intent and the effect."""
    site, workers = doubtful
    reply = killed_and_retried(site, workers, "reconcile", "before-transfer")
    assert (reply.status, reply.body) == (201, b"transferred")
    assert [effect for effect, _ in site.effects()] == ["transfer"]


def test_who_asks_for_a_repetition_gets_it(doubtful: tuple[Site, ExitStack]) -> None:
    """S-04: ``on_doubt="rerun"`` runs the stage again, as its author chose."""
    site, workers = doubtful
    reply = killed_and_retried(site, workers, "rerun", "after-transfer")
    assert reply.status == 201
    assert [effect for effect, _ in site.effects()] == ["transfer", "transfer"]
