"""Shared by all steps: events for listeners, advice that is given once, and the pauses between two tries."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Emit, Steps, ask
from open_idempotency._core.models import Request
from open_idempotency.policy import IdempotencyPolicy

#: seconds between two tries of the same thing: they grow from the first to the longest
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

# seconds
_BETWEEN_LOOKS = 10.0
#: how often a record has to refuse before it is read; how many refusing records are remembered
_REFUSALS, _REMEMBERED = 3, 64


class Advice:
    """Advice to the operator. An engine gives each kind once, however many requests are a reason for it."""

    __slots__ = ("_given", "_next_look", "_refusals")

    def __init__(self) -> None:
        self._given: dict[type[events.Event], object] = {}
        self._next_look = -inf
        # how often each of the last refusing records has refused a request here
        self._refusals: dict[bytes, int] = {}

    def may_look(self, record_id: bytes, now: float) -> bool:
        """Whether to read, for the operator, a record that refuses a request. ``now``: seconds on the monotonic clock.

        Only a record that refuses again and again is read, at most one in ten seconds, until something was found. So a
        request that is refused once costs no further call.
        """
        if self._next_look == inf:
            return False
        refusals = self._refusals.pop(record_id, 0) + 1
        if refusals >= _REFUSALS and now >= self._next_look:
            self._next_look = now + _BETWEEN_LOOKS
            return True
        for oldest in list(self._refusals)[: 1 - _REMEMBERED]:
            self._refusals.pop(oldest, None)
        self._refusals[record_id] = refusals
        return False

    def has_found(self) -> None:
        """Stop looking: the reason was found and reported."""
        self._next_look = inf

    def is_given(self, kind: type[events.Event]) -> bool:
        """Whether this kind of advice was given already, so that no further reason for it need be looked for."""
        return kind in self._given

    def due(self, kind: type[events.Event]) -> bool:
        """True for the first call with this kind, among all threads, and false ever after."""
        mine = object()
        return not self.is_given(kind) and self._given.setdefault(kind, mine) is mine


def _logs_nothing() -> bool:
    return False


class EverydayLog:
    """Whether everyday events are logged. Nothing here knows of logging: the engine's log sets ``on`` when it is
    imported."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on: Callable[[], bool] = _logs_nothing


#: the one log of the process
everyday_log = EverydayLog()


def notify(
    policy: IdempotencyPolicy,
    kind: Callable[..., events.Event],
    record_id: bytes,
    *members: object,
    of: Request | Attempt | None = None,
) -> Steps[None]:
    """Emit an everyday event. It is made only if the policy has a listener, or the logger takes it.

    ``of``: the request that the event is about.
    """
    if policy.on_event is not None or everyday_log.on():
        yield from ask(Emit(kind(events.short(record_id), *members), policy.on_event, of))


def warn(policy: IdempotencyPolicy, event: events.Event, of: Request | Attempt | None = None) -> Steps[None]:
    """Emit an event that an operator should see. It is logged even without a listener.

    ``of``: the request that the event is about.
    """
    yield from ask(Emit(event, policy.on_event, of))


# W3C Trace Context, section 3.2: version, trace id, parent id, flags, neither id all zeros
_is_traceparent = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_LONGEST_METHOD, _LONGEST_ROUTE = 20, 200


def is_traceparent(text: str) -> bool:
    """Whether a text is the ``traceparent`` of some span."""
    return _is_traceparent(text) is not None


def context_of(of: Request | Attempt | None) -> events.RequestContext:
    """What events say of the request that they are about: its method, its route and its trace.

    The trace is the one that the attempt was claimed in, if telemetry knows it, else the one in the request's headers.
    """
    if of is None:
        return events.NO_REQUEST
    if isinstance(of, Request):
        headers, trace, route = of.headers, "", of.route or ""
    else:
        headers, trace, route = of.request_headers, of.trace, of.route_template or ""
    if not trace:
        sent = [value.decode("latin-1") for name, value in headers if name == b"traceparent"]
        trace = sent[0] if len(sent) == 1 and is_traceparent(sent[0]) else ""
    return events.RequestContext(
        events.printable(of.method, _LONGEST_METHOD), events.printable(route, _LONGEST_ROUTE), trace
    )


def cause(error: BaseException) -> str:
    return type(error.__cause__ or error).__name__
