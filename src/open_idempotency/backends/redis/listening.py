"""Hearing that attempts have ended: one thread and one connection in each process, for the sync and the async backend.

The first waiter starts the thread. It subscribes only to the channels of records that are waited for. It ends when
nobody has waited for a while, or when its connection breaks. Then it wakes all waiters, so that they ask the backend,
and the next waiter starts another thread. No outcome depends on a message, which only makes waiting shorter.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from open_idempotency.backends._shared.waiters import Waiter, Waiters
from open_idempotency.backends.redis.connections import Connection
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.pipelining import socket_of
from open_idempotency.backends.redis.refusals import ERRORS
from open_idempotency.backends.redis.topology import topology_of

#: seconds after which a thread without waiters ends
IDLE = 10.0
#: seconds without listening after the connection broke, and after the server forbade to subscribe
REST, LONG_REST = 1.0, 60.0

_READ_AT_ONCE = 4096


class Subscription:
    """One waiter of a channel. Once the subscription is ``confirmed``, each message sets ``ended``."""

    __slots__ = ("_session", "channel", "confirmed", "ended", "settled")

    def __init__(self, channel: bytes, settled: Waiter, ended: Waiter, session: _Session) -> None:
        self.channel = channel
        #: set when it is known whether the subscription is confirmed
        self.settled = settled
        self.ended = ended
        self.confirmed = False
        self._session = session

    def leave(self) -> None:
        """Stop waiting."""
        self._session.leave(self)


class Listener:
    """The subscriptions of one process. Safe to use from many threads."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._resting_until = 0.0

    def enter(self, channel: bytes, settled: Waiter, ended: Waiter) -> Subscription | None:
        """Begin to subscribe to a channel; None where listening is not possible now."""
        if not self._options.listens:
            return None
        with self._lock:
            if time.monotonic() < self._resting_until:
                return None
            if self._session is not None:
                subscription = self._session.enter(channel, settled, ended)
                if subscription is not None:
                    return subscription
            try:
                self._session = _Session(self._options, self._rest)
            except (OSError, RuntimeError):  # the process may have no more files or threads
                self._rest(REST)
                return None
            return self._session.enter(channel, settled, ended)

    def close(self) -> None:
        """End the thread. The next waiter starts another one."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _rest(self, seconds: float) -> None:
        self._resting_until = time.monotonic() + seconds


class _Order(NamedTuple):
    """A command for the server. ``subscription``: what its reply confirms."""

    verb: bytes
    channel: bytes
    subscription: Subscription | None


class _Session:
    """One thread with one connection, from its start to its end. Only the thread uses the connection."""

    def __init__(self, options: Options, rest: Callable[[float], None]) -> None:
        self._options = options
        self._rest = rest
        self._lock = threading.Lock()
        self._waiters = Waiters()
        self._orders: deque[_Order] = deque()
        #: orders without a reply, each with the time at which it was sent; replies come in their order
        self._unacknowledged: deque[tuple[float, _Order]] = deque()
        self._ended = self._closing = False
        self._wake_writer, self._wake_reader = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="open-idempotency-listener", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._end()
            raise

    def enter(self, channel: bytes, settled: Waiter, ended: Waiter) -> Subscription | None:
        """Subscribe; None where the session has ended."""
        subscription = Subscription(channel, settled, ended, self)
        with self._lock:
            if self._ended:
                return None
            self._waiters.add(channel, ended)
            # Also for a channel that is subscribed already, because the reply shows that the connection is alive.
            self._order(_Order(b"SUBSCRIBE", channel, subscription))
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Unsubscribe, unless the channel has another waiter."""
        with self._lock:
            if not self._ended and self._waiters.discard(subscription.channel, subscription.ended):
                self._order(_Order(b"UNSUBSCRIBE", subscription.channel, None))

    def close(self) -> None:
        """End the session, and wait for its end."""
        with self._lock:
            self._closing = True
            if not self._ended:
                self._wake()
        self._thread.join(2 * self._options.timeout)

    def _order(self, order: _Order) -> None:
        self._orders.append(order)
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # the thread has not read the earlier bytes yet
            self._wake_writer.send(b"!")

    # In the thread

    def _run(self) -> None:
        connection: Connection | None = None
        try:
            connection = topology_of(self._options).listen(self._options)
            sock = socket_of(connection)
            assert sock is not None  # it is connected, and ``Options.listens`` says that redis-py shows it
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_READ)
                selector.register(self._wake_reader, selectors.EVENT_READ)
                while self._send_orders(connection):
                    self._hear(connection, selector)
        except ResponseError:
            self._rest(LONG_REST)  # the user may not subscribe
        except ERRORS:
            self._rest(REST)
        finally:
            self._end()
            if connection is not None:
                connection.disconnect()

    def _send_orders(self, connection: Connection) -> bool:
        """Send the orders. Returns whether to go on."""
        with self._lock:
            orders = list(self._orders)
            self._orders.clear()
            if self._closing:
                return False
        for order in orders:
            connection.send_command(order.verb, order.channel)
            self._unacknowledged.append((time.monotonic(), order))
        return True

    def _hear(self, connection: Connection, selector: selectors.BaseSelector) -> None:
        """Wait for a reply, a message or an order, for a bounded time."""
        patience = self._options.timeout if self._unacknowledged else IDLE
        heard = selector.select(patience)
        if any(key.fileobj is self._wake_reader for key, _ in heard):
            self._wake_reader.recv(_READ_AT_ONCE)
        while connection.can_read(0):
            self._take(connection.read_response())
        if self._unacknowledged and time.monotonic() - self._unacknowledged[0][0] > self._options.timeout:
            raise TimeoutError("no reply to a subscription in time")
        if not heard:
            self._end_if_idle()

    def _take(self, reply: Any) -> None:
        kind, channel, _ = reply
        if kind == b"message":
            with self._lock:
                self._waiters.wake(channel)
            return
        _, order = self._unacknowledged.popleft()
        if order.subscription is not None:
            order.subscription.confirmed = True
            order.subscription.settled.set()

    def _end_if_idle(self) -> None:
        with self._lock:
            if not self._waiters and not self._orders:
                self._closing = self._ended = True

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            self._waiters.wake_all()
            for order in (*self._orders, *(order for _, order in self._unacknowledged)):
                if order.subscription is not None:
                    order.subscription.settled.set()
            self._wake_writer.close()
            self._wake_reader.close()
