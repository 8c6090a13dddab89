"""The key header on the wire: raw header bytes against every adapter.

Parsing does not call a backend, so these tests run on memory only. A server may refuse control characters by itself
with a 400 of its own; then nothing has run either, which is what these tests require.
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.http.conftest import NewCase
from tests.http.endpoints import charge
from tests.http.sites import assert_problem
from tests.http.variants import on_memory_only

pytestmark = on_memory_only

KEY = b"8e03978e-40d5-43e8-bc93-6894a57f9324"
NAME = b"Idempotency-Key"

MALFORMED = {
    "H-03 other escape": rb'"aaaaaaaaaaaaaaaa\n"',
    "H-04 unterminated": b'"aaaaaaaaaaaaaaaa',
    "H-04 unopened": b'aaaaaaaaaaaaaaaa"',
    "H-04 more behind it": b'"aaaaaaaaaaaaaaaa"def',
    "H-06 upper-case parameter": b'"aaaaaaaaaaaaaaaa";V=1',
    "H-06 empty parameter": b'"aaaaaaaaaaaaaaaa";',
    "H-06 space before parameter": b'"aaaaaaaaaaaaaaaa" ;v=1',
    "H-06 list": b'"aaaaaaaaaaaaaaaa", "b"',
    "H-06 inner list": b'("aaaaaaaaaaaaaaaa")',
    "H-06 display string": b'%"aaaaaaaaaaaaaaaa"',
    "H-08 empty field": b"",
    "H-08 empty string": b'""',
    "H-09 high byte": b'"aaaaaaaaaaaaaaaa\xe9"',
    "H-09 high byte, bare": b"aaaaaaaaaaaaaaaa\xff",
    "H-09 control character": b'"aaaaaaaaaaaaaaaa\x01"',
    "H-09 tab within": b'"aaaaaaaaaaaaaaaa\tb"',
    "H-09 delete": b"aaaaaaaaaaaaaaaa\x7f",
    "H-10 256 octets": b'"' + b"k" * 256 + b'"',
    "H-10 256 octets, bare": b"k" * 256,
    "H-10 8 KiB": b'"' + b"k" * 8192 + b'"',
}
FINE_IN_BOTH = {
    "H-01 quoted": b'"' + KEY + b'"',
    "H-03 escaped quote": rb'"aaaaaaaaaaaaaaaa\"b"',
    "H-03 escaped backslash": rb'"aaaaaaaaaaaaaaaa\\b"',
    "H-05 spaces around": b'   "' + KEY + b'"  ',
    "H-05 parameter": b'"' + KEY + b'";v=1',
    "H-05 parameter without a value": b'"' + KEY + b'"; v',
    "H-10 255 octets": b'"' + b"k" * 255 + b'"',
}


@pytest.mark.parametrize("variant", ["default", "strict"])
def test_a_malformed_key_is_refused_before_anything_happens(new_case: NewCase, variant: str) -> None:
    """H-03, H-04, H-06, H-08, H-09, H-10, O-06: 400 in both profiles; neither the backend nor the handler is called."""
    for name, value in MALFORMED.items():
        case = new_case(charge, variant)
        assert (name, case.raw((NAME, value)).status) == (name, 400)
        assert (name, case.runs, case.commands) == (name, [], [])


@pytest.mark.parametrize("variant", ["default", "strict"])
def test_a_well_formed_key_is_accepted(new_case: NewCase, variant: str) -> None:
    """H-01, H-03, H-05, H-10: the request is covered."""
    for name, value in FINE_IN_BOTH.items():
        case = new_case(charge, variant)
        # the keys are the same for all tests, so each has its caller
        response = case.raw((NAME, value), (b"Authorization", case.key.encode()))
        assert (name, response.status, case.verbs) == (name, 201, ["Claim", "Complete"])


def test_a_bare_key_is_the_same_key_as_the_quoted_one(new_case: NewCase) -> None:
    """H-02: a client that quotes its retry gets the first response."""
    case = new_case(charge)
    case.raw((NAME, case.key.encode()))
    again = case.raw((NAME, b'"' + case.key.encode() + b'"'))
    assert again.getheader("Idempotent-Replayed") == "true"
    assert len(case.runs) == 1


def test_a_bare_key_is_malformed_for_the_strict_profile(new_case: NewCase) -> None:
    """H-02: ``strict`` accepts only an RFC 9651 String."""
    case = new_case(charge, "strict")
    assert case.raw((NAME, case.key.encode())).status == 400
    assert case.runs == []


def test_parameters_do_not_belong_to_the_key(new_case: NewCase) -> None:
    """H-05: with another parameter it is the same key."""
    case = new_case(charge)
    quoted = b'"' + case.key.encode() + b'"'
    case.raw((NAME, quoted + b";v=1"))
    assert case.raw((NAME, quoted + b"; v=2")).getheader("Idempotent-Replayed") == "true"


@pytest.mark.parametrize("second", ["own", "other"])
def test_two_field_lines_are_refused(new_case: NewCase, second: str) -> None:
    """H-07: equal or not."""
    case = new_case(charge)
    first = b'"' + case.key.encode() + b'"'
    assert case.raw((NAME, first), (NAME, first if second == "own" else b'"another-key-altogether"')).status == 400
    assert case.runs == []


def test_an_alias_with_another_value_is_refused(new_case: NewCase) -> None:
    """H-07: it is unclear which of the two is meant."""
    case = new_case(charge, "alias")
    fields = (NAME, b'"' + case.key.encode() + b'"'), (b"X-Idempotency-Key", b'"another-key-altogether"')
    assert case.raw(*fields).status == 400
    assert case.runs == []


def test_an_alias_with_the_same_value_is_one_key(new_case: NewCase) -> None:
    """H-07: a client may send both headers."""
    case = new_case(charge, "alias")
    value = b'"' + case.key.encode() + b'"'
    assert case.raw((NAME, value), (b"X-Idempotency-Key", value)).status == 201
    assert case.raw((b"X-Idempotency-Key", value)).getheader("Idempotent-Replayed") == "true"


def test_the_value_is_case_sensitive(new_case: NewCase) -> None:
    """H-11: two spellings are two keys."""
    case = new_case(charge)
    case.raw((NAME, case.key.upper().encode()))
    case.raw((NAME, case.key.upper().replace("A", "a").encode() + b"x"))
    case.raw((NAME, case.key.upper().encode() + b"X"))
    assert len(case.runs) == 3


def test_the_field_name_is_not_case_sensitive(new_case: NewCase) -> None:
    """H-11: as with every header field."""
    case = new_case(charge)
    case.raw((b"IDEMPOTENCY-key", case.key.encode()))
    assert case.raw((b"idempotency-KEY", case.key.encode())).getheader("Idempotent-Replayed") == "true"


def test_the_field_name_is_configurable(new_case: NewCase) -> None:
    """The standard name has no effect if another one is set."""
    case = new_case(charge, "renamed")
    case.raw((NAME, case.key.encode()))
    assert case.commands == []
    case.raw((b"X-Request-Key", case.key.encode()))
    assert case.verbs == ["Claim", "Complete"]


def test_a_key_in_another_header_is_no_key(new_case: NewCase) -> None:
    """O-06: a client that spells the name otherwise is not protected; if a key is required, the problem names the
    header.
    """
    case = new_case(charge)
    key = [("X-Idempotency-Key", str(uuid4()))]
    assert [case.send(key=None, headers=key).status_code for _ in range(2)] == [201, 201]
    assert len(case.runs) == 2
    refused = new_case(charge, "required").send(key=None, headers=key)
    assert_problem(refused, "key-missing", 400, retryable=False)
    assert "Idempotency-Key header" in refused.json()["detail"]


def test_a_key_of_the_wrong_form_is_refused_by_the_hook(new_case: NewCase) -> None:
    """H-11: ``validate=`` asks for a UUID."""
    case = new_case(charge, "uuid")
    assert case.raw((NAME, b'"not-a-uuid-but-long-enough"')).status == 400
    assert case.commands == []
    assert case.raw((NAME, case.key.encode())).status == 201
