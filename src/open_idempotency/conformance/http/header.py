"""Checks of the field itself: what a key may look like, and when two spellings are one key."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from open_idempotency.conformance.http.observations import Observations, new_key
from open_idempotency.conformance.http.replays import is_replay
from open_idempotency.conformance.http.verdicts import Verdict, fails, holds, holds_if, not_applicable, unknown
from open_idempotency.conformance.http.wire import Exchange

Lines = tuple[bytes, ...]

# Each is made with a new key inside, so that a server which takes it for a key runs the request.
_NO_STRING: dict[str, str] = {
    "an unterminated String": '"{0}',
    "text after a String": '"{0}"x',
    "an unknown escape": '"{0}\\q"',
    "a List": '"{0}", "{1}"',
    "an Inner List": '("{0}")',
    "an upper-case parameter": '"{0}";V=1',
}
_STRANGE: dict[str, Callable[[bytes], Lines]] = {
    "bytes above 0x7F": lambda key: (b'"' + key + b'\xc3\xa9"',),
    "a control character": lambda key: (b'"' + key + b'\x01"',),
}
_TWICE: dict[str, Callable[[bytes], Lines]] = {
    "two equal lines": lambda key: (b'"' + key + b'"', b'"' + key + b'"'),
    "two different lines": lambda key: (b'"' + key + b'"', b'"' + new_key().encode() + b'"'),
}
_EMPTY: dict[str, Callable[[bytes], Lines]] = {
    "an empty field": lambda key: (b"",),
    "an empty String": lambda key: (b'""',),
}


def string_taken(seen: Observations) -> Verdict:
    """A key as a String is a key."""
    return holds_if(seen.as_string.success, f"{seen.as_string}" + ("" if seen.quoted else ", but taken without quotes"))


def _refused(seen: Observations, values: dict[str, Lines]) -> Verdict:
    answers = {what: seen.send_malformed(*lines) for what, lines in values.items()}
    wrong = [f"{what}: {answer}" for what, answer in answers.items() if not _is_refusal(answer) and answer.status]
    if wrong:
        return fails("; ".join(wrong))
    silent = [f"{what}: {answer}" for what, answer in answers.items() if not answer.status]
    if silent:
        raise unknown("; ".join(silent))
    return holds("; ".join(f"{what}: {answer}" for what, answer in answers.items()))


def _is_refusal(answer: Exchange) -> bool:
    return 400 <= answer.status < 500


def no_string(seen: Observations) -> Verdict:
    """What is not a String is refused."""
    values: dict[str, Lines] = {
        what: (value.format(new_key(), new_key()).encode("ascii"),) for what, value in _NO_STRING.items()
    }
    return _refused(seen, values)


def strange_bytes(seen: Observations) -> Verdict:
    """What no String may contain is refused."""
    return _refused(seen, {what: make(new_key().encode()) for what, make in _STRANGE.items()})


def two_lines(seen: Observations) -> Verdict:
    """Two field lines are refused, whatever is in them."""
    return _refused(seen, {what: make(new_key().encode()) for what, make in _TWICE.items()})


def empty(seen: Observations) -> Verdict:
    """An empty key is refused, and not taken for no key."""
    return _refused(seen, {what: make(b"") for what, make in _EMPTY.items()})


def case_of_key(seen: Observations) -> Verdict:
    """Upper case makes another key."""
    answer = seen.respelled(seen.spelled(seen.key.upper()))
    if not answer.success:
        raise unknown(f"the key in upper case is answered {answer}")
    return fails(f"{answer}, as a retry") if is_replay(seen, answer) else holds(f"{answer}, a result of its own")


def case_of_name(seen: Observations) -> Verdict:
    """Upper case does not make another field."""
    answer = seen.respelled(seen.spelled(seen.key), seen.target.header_name.upper())
    return _same_key(seen, answer)


def bare_key(seen: Observations) -> Verdict:
    """The key without quotes is the same key."""
    if not seen.quoted:
        raise not_applicable("this endpoint does not take quotes")
    return _same_key(seen, seen.respelled(seen.key.encode("ascii")))


def parameters(seen: Observations) -> Verdict:
    """Parameters are not part of the key."""
    if not seen.quoted:
        raise not_applicable("this endpoint does not take quotes")
    return _same_key(seen, seen.respelled(seen.spelled(seen.key) + b";v=1"))


def _same_key(seen: Observations, answer: Exchange) -> Verdict:
    if is_replay(seen, answer):
        return holds(f"{answer}, as a retry")
    return fails(f"{answer}" + (", a result of its own: another key" if answer.success else ""))


def length(seen: Observations) -> Verdict:
    """255 octets are taken, and 256 are too many."""
    taken, refused = (seen.send_long(seen.spelled(secrets.token_hex(128)[:octets])) for octets in (255, 256))
    return holds_if(taken.success and _is_refusal(refused), f"255: {taken}; 256: {refused}")
