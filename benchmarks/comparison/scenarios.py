"""The scenarios: each is a small function that tests one behaviour of a served subject, and returns a verdict in words.

Two asterisks mark a verdict by which an effect may happen twice, a request that should succeed does not, or a response
reaches another caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.comparison.rig import AT_ONCE, Got, NotApplicable, Rig
from benchmarks.comparison.subjects import Option
from benchmarks.interface import OTHER_PATH

#: seconds after which retries of one key are given up
_GIVE_UP, _GIVE_UP_AFTER_CRASH = 35.0, 70.0
_LONG_KEY = "k" * 5000


class FirstFailed(Exception):
    """The first request, which is to be repeated, does not succeed; its status."""


class Scenario(NamedTuple):
    """``name``: in the results; ``title``: of the column; ``table``: which part of the page has it."""

    name: str
    title: str
    table: str
    run: Callable[[Rig], str]


def replay(rig: Rig) -> str:
    """A completed request is sent again."""
    return _sent_twice(rig)


def streamed(rig: Rig) -> str:
    """The same for a response in three parts."""
    rig.lead.let("stream")
    return _sent_twice(rig)


def _sent_twice(rig: Rig) -> str:
    key = rig.new_key()
    first = _good(rig.send(key))
    before = rig.lead.count("begin")
    second = rig.send(key)
    if rig.lead.count("begin") > before:
        return "**runs again**"
    if second.status != first.status:
        return f"{second.status} with the first body" if second.same(first) else f"**refused: {second.status}**"
    lost = [name for name in ("location", "x-charge") if first.has(name) and not second.has(name)]
    texts = ["status" if second.body != first.body else "status, bytes"]
    texts += ["other bytes"] if second.body != first.body else []
    texts += ["no headers" if len(lost) == 2 else "headers"] if first.has("location") else []
    marks = _marks(first, second)
    return ", ".join(texts) + (f"; marked `{marks[0]}`" if marks else "; not marked")


def _marks(first: Got, second: Got) -> list[str]:
    """The headers that identify a response as a replay; explicit ones come first."""
    changed = {name: value for name, value in second.headers.items() if first.headers.get(name) != value}
    texts = {name: f"{name} {value}".lower() for name, value in changed.items()}
    marks = [name for name, text in texts.items() if any(word in text for word in ("replay", "idempot", "cache"))]
    return sorted(marks, key=lambda name: ("replay" not in texts[name], name))


def other_body(rig: Rig) -> str:
    """The key of a completed request is used with another body."""
    return _reused(rig, lambda key: rig.send(key, body=b'{"amount": 999}'))


def other_path(rig: Rig) -> str:
    """The key is used on another path."""
    return _reused(rig, lambda key: rig.send(key, path=OTHER_PATH))


def other_method(rig: Rig) -> str:
    """The key is used with another method."""
    return _reused(rig, lambda key: rig.send(key, method="PATCH"))


def _reused(rig: Rig, send: Callable[[str], Got]) -> str:
    key = rig.new_key()
    first = _good(rig.send(key))
    before = rig.lead.count("begin")
    second = send(key)
    if rig.lead.count("begin") > before:
        return "another request"
    return "first response" if second.same(first) else _status(second)


def callers(rig: Rig) -> str:
    """Another caller sends the key of a completed request, and the same body."""
    key = rig.new_key()
    first = _good(rig.send(key, caller="anna"))
    before = rig.lead.count("begin")
    second = rig.send(key, caller="bert")
    if rig.lead.count("begin") > before:
        return "separate"
    return "**gets the other's response**" if second.same(first) else _status(second)


def duplicate(rig: Rig) -> str:
    """The key is used again while its first request runs."""
    key = rig.new_key()
    gate, first = rig.begin_held(key)
    before = rig.lead.count("begin")
    second = rig.begin(key)
    rig.happens(lambda: second.done() or rig.lead.count("begin") > before, AT_ONCE)
    at_once, twice = second.done(), rig.lead.count("begin") > before
    rig.lead.open(gate)
    completed, repeated = first.result(), second.result()
    if twice:
        return "**runs twice**"
    if not at_once:
        return "waits, then replay" if repeated.same(completed) else f"waits, then {_status(repeated)}"
    return f"{_status(repeated)} at once" + (", `Retry-After`" if repeated.has("retry-after") else "")


def slow(rig: Rig) -> str:
    """The handler is slower than the lock of its key: whether a second run begins beside it."""
    key = rig.new_key()
    gate, first = rig.begin_held(key)
    bound = 4.0 * rig.option.lock if rig.option else _GIVE_UP
    retried = rig.retry(key, bound)
    rig.lead.open(gate)
    first.result()
    if retried.seconds is None:
        return f"no second run in {bound:.0f} s"
    return "**second run at once**" if retried.at_once else f"**second run after {retried.seconds:.0f} s**"


def fails(rig: Rig) -> str:
    """The handler responds with 500, and the request is sent again."""
    rig.lead.let("fail")
    return _after_failure(rig)


def raises(rig: Rig) -> str:
    """The handler raises, and the request is sent again."""
    rig.lead.let("raise")
    return _after_failure(rig)


def _after_failure(rig: Rig) -> str:
    key = rig.new_key()
    first = rig.send(key)
    rig.lead.let("respond")
    retried = rig.retry(key, 3.0)
    if retried.seconds is not None:
        return "runs again"
    if retried.last is not None and retried.last.status == first.status and first.status != 0:
        return f"{first.status} is replayed"
    return f"**{_status(retried.last)}, not run again**"


def crash(rig: Rig) -> str:
    """The worker is killed while the handler runs; the request is sent again to another worker."""
    key = rig.new_key()
    with rig.second_worker():
        gate, _ = rig.begin_held(key)
    rig.lead.open(gate)
    retried = rig.retry(key, _GIVE_UP_AFTER_CRASH)
    if retried.seconds is None:
        return f"**{_status(retried.last)} for longer than {_GIVE_UP_AFTER_CRASH:.0f} s**"
    return "runs again at once" if retried.at_once else f"runs again after {retried.seconds:.0f} s"


def leaves(rig: Rig) -> str:
    """The client closes its connection while the handler runs, and sends the request again later."""
    key = rig.new_key()
    ended = rig.lead.count("end")
    gate = rig.begin_and_leave(key)
    # a server that cancels does so by itself, soon after it sees the connection closed
    rig.happens(lambda: rig.lead.count("cancelled") > 0, 1.0)
    rig.lead.open(gate)
    finished = rig.happens(lambda: rig.lead.count("end") > ended, 2.0)
    retried = rig.retry(key, 3.0)
    first = "finishes" if finished else "cancelled"
    if retried.seconds is not None:
        return f"{first}; **the retry runs again**" if finished else f"{first}; the retry runs"
    if retried.last is not None and retried.last.status == 201:
        return f"{first}; the retry is a replay"
    return f"{first}; **the retry gets {_status(retried.last)}**"


def no_key(rig: Rig) -> str:
    """A request without a key is sent twice."""
    before = rig.lead.count("begin")
    _, second = rig.send(None), rig.send(None)
    ran = rig.lead.count("begin") - before
    return {2: "runs each time", 1: "the second is a replay"}.get(ran, _status(second))


def keys(rig: Rig) -> str:
    """A key that is empty, one of 5,000 characters, and one with a quote that does not end."""
    return ", ".join(_one_key(rig, key) for key in ("", _LONG_KEY, '"8e03978e-40d5'))


def _one_key(rig: Rig, key: str) -> str:
    before = rig.lead.count("begin")
    got = rig.send(key)
    return "runs" if rig.lead.count("begin") > before else _status(got)


def down(rig: Rig) -> str:
    """The backend's server is dead: whether a new request runs, and what its client gets."""
    _good(rig.send(rig.new_key()))  # so that a connection is open
    rig.stop_backend()
    before = rig.lead.count("begin")
    got = rig.send(rig.new_key(), seconds=30)
    if rig.lead.count("begin") > before:
        return f"**runs unprotected**, {_status(got)}"
    return f"does not run, {_status(got)} {'at once' if got.seconds < AT_ONCE else f'after {got.seconds:.0f} s'}"


def _status(got: Got | None) -> str:
    return "no response" if got is None or not got.status else str(got.status)


def _good(got: Got) -> Got:
    if got.status != 201:
        raise FirstFailed(_status(got))
    return got


#: in the order in which they are run: the last one leaves no backend
SCENARIOS: tuple[Scenario, ...] = (
    Scenario("replay", "Sent again", "replays", replay),
    Scenario("streamed", "Streamed response, sent again", "replays", streamed),
    Scenario("body", "Another body", "replays", other_body),
    Scenario("path", "Another path", "replays", other_path),
    Scenario("method", "Another method", "replays", other_method),
    Scenario("callers", "Another caller", "requests", callers),
    Scenario("nokey", "No key, twice", "requests", no_key),
    Scenario("keys", "Key empty, 5,000 characters, malformed", "requests", keys),
    Scenario("duplicate", "While the first runs", "overlaps", duplicate),
    Scenario("slow", "Handler outlasts the lock", "overlaps", slow),
    Scenario("leaves", "Client leaves", "overlaps", leaves),
    Scenario("fails", "Retry after a 500", "failures", fails),
    Scenario("raises", "Retry after an exception", "failures", raises),
    Scenario("crash", "Retry after SIGKILL", "failures", crash),
    Scenario("down", "Backend down", "failures", down),
)


def verdict(scenario: Scenario, rig: Rig) -> str:
    """The verdict of a scenario for the rig's subject; a scenario that does not run says so."""
    reason = rig.subject.not_applicable.get(scenario.name)
    if reason is not None:
        return f"not applicable: {reason}"
    option = rig.subject.options.get(scenario.name)
    if option is None:
        return _asked(scenario, rig, None)
    without = "" if option.lock else f"{_asked(scenario, rig, None)}; "
    return f"{without}{_asked(scenario, rig, option)} ({option.label})"


def _asked(scenario: Scenario, rig: Rig, option: Option | None) -> str:
    rig.lead.let("respond")
    try:
        rig.serve(option)
        return scenario.run(rig)
    except NotApplicable as reason:
        return f"not applicable: {reason}"
    except FirstFailed as status:
        return f"**first request gets {status}**"
    except Exception as error:
        return f"does not run: {type(error).__name__}: {error}"
