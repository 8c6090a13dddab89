"""Deadlines bound every blocking call to Redis, whatever ends the call."""

from __future__ import annotations

import gc
import socket
import threading

from open_idempotency.backends.redis.connections import DeadlineConnection
from open_idempotency.backends.redis.options import Deadline, seconds_left


def test_the_nearer_of_two_deadlines_counts() -> None:
    """B-10: a deadline within a deadline."""
    with Deadline(60):
        with Deadline(3600):
            assert 0 < (seconds_left() or 0) <= 60
        with Deadline(1):
            assert 0 < (seconds_left() or 0) <= 1
        assert 1 < (seconds_left() or 0) <= 60
    assert seconds_left() is None


def test_a_deadline_ends_with_its_block_although_that_was_not_left_in_order() -> None:
    """B-10: a signal handler may raise at the moment in which the block is left."""
    abandoned = Deadline(60)
    abandoned.__enter__()
    assert seconds_left() is not None
    del abandoned
    gc.collect()
    assert seconds_left() is None


def test_a_deadline_is_its_threads_own() -> None:
    """B-11: the deadlines of several threads do not affect each other."""
    found: list[float | None] = []
    with Deadline(60):
        thread = threading.Thread(target=lambda: found.append(seconds_left()))
        thread.start()
        thread.join(20)
    assert found == [None]


def test_a_connection_that_was_made_in_a_limit_step_has_all_the_time_again_afterwards() -> None:
    """B-10: redis-py restores the timeout that it had when it connected."""
    ours, server = socket.socketpair()
    with ours, server:
        connection = DeadlineConnection(socket_connect_timeout=5.0, socket_timeout=5.0)
        connection._sock = ours
        ours.settimeout(0.04)
        with Deadline(60):
            connection._limit_step()
        assert ours.gettimeout() == 5.0
        with Deadline(1):
            connection._limit_step()
        assert 0 < (ours.gettimeout() or 0) <= 1
        connection._sock = None
