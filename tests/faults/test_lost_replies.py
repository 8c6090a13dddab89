"""Row 4: the server executed a command, and its reply never arrived.

A proxy loses the reply to one command: it ends the connection, or goes silent, so that the caller's timeout ends the
wait.
"""

from __future__ import annotations

import pytest

from tests.faults.effects import Effects
from tests.faults.handlers import Failed, charging, failing_first, plain
from tests.faults.proxy import FaultProxy
from tests.faults.records import OnPostgres, OnServer, on_postgres, on_servers, wsgi_and_asgi
from tests.faults.site import PATIENCE, Order, Worker, admitted, refused_in_time

silence = pytest.mark.parametrize("silently", [False, True], ids=["cut", "silence"])
ONCE = ["reserve 1", "charge 1"]
MANY = 32


@on_servers
@wsgi_and_asgi
@pytest.mark.fault("reply to a claim lost, connection cut", row=4, invariants=("I1", "I6", "I9"))
def test_the_owner_does_not_learn_that_another_caller_has_its_key(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """B-08: the same owner sends the claim again; one run, no 409."""
    with Worker(interface, records.at(proxy.port)) as worker:
        order = Order(charging(effects))
        loss = proxy.lose_reply(records.command("claim"))
        first = worker.post(order)
        assert loss.happened.wait(PATIENCE)
        assert first.status == 201
        assert worker.post(order).body == first.body
    assert effects.all() == ONCE


@on_servers
@pytest.mark.fault("reply to a claim lost, silence", row=4, invariants=("I6", "I8", "I11"))
def test_a_claim_whose_response_never_comes_runs_nothing_and_blocks_for_a_lease_at_most(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """B-10, O-12: 503 within the call's bound, and a retry runs when the lease of the unknown claim has ended."""
    with Worker(interface, records.at(proxy.port)) as worker:
        losses = []

        def doomed() -> Order:
            losses.append(proxy.lose_reply(records.command("claim"), silently=True))
            return Order(charging(effects))

        order = refused_in_time(worker, doomed)
        assert all(loss.happened.wait(PATIENCE) for loss in losses)
        assert worker.post_until(order, admitted).status == 201
    assert [effect.split()[0] for effect in effects.all()] == ["reserve", "charge"]


@on_servers
@silence
@wsgi_and_asgi
@pytest.mark.fault("reply to a stage lost", row=4, invariants=("I6", "I9"))
def test_a_stage_whose_response_was_lost_is_recorded_once(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str, silently: bool
) -> None:
    """B-08, B-06: it is sent again, and the first value stays."""
    with Worker(interface, records.at(proxy.port)) as worker:
        order = Order(charging(effects))
        loss = proxy.lose_reply(records.command("save_stage"), silently=silently)
        assert worker.post(order).status == 201
        assert loss.happened.wait(PATIENCE)
    assert effects.all() == ONCE


@on_servers
@silence
@wsgi_and_asgi
@pytest.mark.fault("reply to a completion lost", row=4, invariants=("I2", "I4", "I6", "I9"))
def test_a_completion_whose_response_was_lost_goes_out_as_recorded(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str, silently: bool
) -> None:
    """B-08, R-03: repeated, it succeeds; the response is not marked, and a duplicate gets the same bytes."""
    with Worker(interface, records.at(proxy.port)) as worker:
        order = Order(charging(effects))
        loss = proxy.lose_reply(records.command("complete"), silently=silently)
        first = worker.post(order)
        assert loss.happened.wait(PATIENCE)
        again = worker.post(order)
        assert (first.status, first.unrecorded) == (201, False)
        assert (again.status, again.replayed, again.body) == (201, True, first.body)
    assert effects.all() == ONCE


@on_servers
@silence
@wsgi_and_asgi
@pytest.mark.fault("reply to a failure lost", row=4, invariants=("I5", "I6", "I9"))
def test_a_failure_whose_response_was_lost_lets_the_retry_run_at_once(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str, silently: bool
) -> None:
    """B-08, L-04: it resumes after the recorded stage."""
    with Worker(interface, records.at(proxy.port)) as worker:
        order = Order(failing_first(effects))
        loss = proxy.lose_reply(records.command("fail"), silently=silently)
        with pytest.raises(Failed):
            worker.post(order)
        assert loss.happened.wait(PATIENCE)
        assert worker.post(order).status == 201
    assert effects.all() == ["reserve 1", "charge 2"]


@on_servers
@silence
@wsgi_and_asgi
@pytest.mark.fault("reply to a release lost", row=4, invariants=("I5", "I6"))
def test_a_release_whose_response_was_lost_lets_the_retry_run_at_once(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str, silently: bool
) -> None:
    """B-08: the client gets the response that is not stored (429)."""
    with Worker(interface, records.at(proxy.port)) as worker:
        order = Order(plain(effects, status=429))
        loss = proxy.lose_reply(records.command("release"), silently=silently)
        assert worker.post(order).status == 429
        assert loss.happened.wait(PATIENCE)
        assert worker.post(order).status == 429
    assert len(effects.all()) == 2


@on_servers
@pytest.mark.parametrize("silently", [pytest.param(False, marks=pytest.mark.full_form), True], ids=["cut", "silence"])
@pytest.mark.fault("reply to a heartbeat lost", row=4, invariants=("I1", "I6", "I9"))
def test_a_beat_whose_response_was_lost_costs_the_owner_nothing(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str, silently: bool
) -> None:
    """B-08, L-01: it has renewed the lease, and the next heartbeats renew it again."""
    with Worker(interface, records.at(proxy.port)) as worker, Worker("wsgi", records.at()) as other:
        order = Order(charging(effects, hold="charge"))
        loss = proxy.lose_reply(records.command("renew"), silently=silently)
        later = proxy.lose_reply(records.command("renew"), nth=4)
        running = worker.start(order)
        order.until_arrived()
        assert loss.happened.wait(PATIENCE)
        while not later.happened.wait(0.2):
            assert other.post(order).status == 409
        order.script.release.set()
        assert running.result(PATIENCE).status == 201
    assert effects.all() == ONCE


@on_postgres
@pytest.mark.parametrize("batch", ["claims", "ends"])
@pytest.mark.fault("reply to a batch lost", row=4, invariants=("I1", "I4", "I6", "I9"))
def test_a_batch_whose_response_was_lost_is_sent_again_for_all_in_it(
    records: OnPostgres, proxy: FaultProxy, effects: Effects, batch: str
) -> None:
    """B-08: each of many concurrent requests runs once, and its response is recorded."""
    proxy.delay(0.03)  # calls that begin while another one is in flight share a batch
    with Worker("asgi", records.at(proxy.port, "timeout=5"), lease=20) as worker:
        orders = [Order(plain(effects)) for _ in range(MANY)]
        loss = proxy.lose_reply(records.command(batch))
        responses = [response.result(PATIENCE) for response in [worker.start(order) for order in orders]]
        assert loss.happened.wait(PATIENCE)
        assert {(response.status, response.unrecorded) for response in responses} == {(201, False)}
        assert [worker.post(order).body for order in orders] == [response.body for response in responses]
    assert effects.all() == ["run 1"] * MANY
