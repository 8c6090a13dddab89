"""``fingerprint="jcs"`` compares numbers by value (RFC 8785); ``fingerprint_parts`` says which parts are compared."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_idempotency import ConfigurationError
from open_idempotency._core.fingerprint import JCS_MARKS, canonical_by_value, fingerprint
from open_idempotency.policy import ALL_PARTS, IdempotencyPolicy
from tests.unit.builders import request_of

JCS = IdempotencyPolicy(fingerprint="jcs")


def _same(one: bytes, other: bytes, policy: IdempotencyPolicy = JCS) -> bool:
    return fingerprint(request_of(one), policy) == fingerprint(request_of(other), policy)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"amount": 1}', b'{"amount": 1.0}'),
        (b'{"amount": 1}', b'{"amount":1e0}'),
        (b'{"amount": 10.50}', b'{"amount": 10.5}'),
        (b"[-0.0]", b"[0]"),
        (b'{"a": 1, "b": 2}', b'{"b": 2.0, "a": 1.0}'),
        (b'"\\u00e9"', b'"\xc3\xa9"'),
        (b"[1E+2, 0.001]", b"[100, 1e-3]"),
    ],
)
def test_numbers_that_are_one_value_are_one_request(one: bytes, other: bytes) -> None:
    """O-37."""
    assert _same(one, other)
    assert not _same(one, other, IdempotencyPolicy(fingerprint="auto"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"[1]", b'["1"]'),
        (b"[1, 2]", b"[2, 1]"),
        (b"[9007199254740992]", b"[9007199254740993]"),  # one double, two integers
        (b"[1e400]", b"[2e400]"),
        (b'{"a": 1, "a": 2}', b'{"a": 1}'),
        (b"[NaN]", b"[null]"),
        (b'["\\ud800"]', b'["?"]'),
        (b"[1] ", b"[1"),
    ],
)
def test_what_differs_or_has_no_such_form_counts_by_its_exact_bytes(one: bytes, other: bytes) -> None:
    """O-37: above all integers that no double holds, which would otherwise have equal values."""
    assert not _same(one, other)
    assert _same(one, one)


def test_beyond_its_bounds_the_exact_bytes_count() -> None:
    """O-37, R-10: the bounds are a number of punctuation marks and a depth."""
    assert _same(b"[" + b"1," * (JCS_MARKS - 2) + b"1]", b"[" + b"1.0," * (JCS_MARKS - 2) + b"1]")
    assert not _same(b"[" + b"1," * JCS_MARKS + b"1]", b"[" + b"1.0," * JCS_MARKS + b"1]")
    assert not _same(b"[" * 200 + b"1" + b"]" * 200, b"[" * 200 + b"1.0" + b"]" * 200)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_number_is_the_same_however_it_is_written(number: float) -> None:
    """O-37."""
    written = repr(number).encode()
    again = (b"%.17e" % number) if isinstance(number, float) else b"%d.0" % number
    assert canonical_by_value(written) == canonical_by_value(again)


def test_pointers_are_left_out_of_the_form_by_value_too() -> None:
    """O-37: ``fingerprint_ignore`` applies to the form by value too."""
    policy = IdempotencyPolicy(fingerprint="jcs", fingerprint_ignore=["/id"])
    assert _same(b'{"id": 1, "n": 1}', b'{"id": 2, "n": 1.0}', policy)


def test_a_missing_library_is_an_error_at_start_that_names_the_extra() -> None:
    """O-38: the error is not left to the first request."""
    code = (
        "import sys; sys.modules['rfc8785'] = None\n"
        "from open_idempotency.adapter import Adapter\n"
        "Adapter('memory://')\n"
        "Adapter('memory://', fingerprint='jcs')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert "pip install 'open-idempotency[jcs]'" in ran.stderr.splitlines()[-1]


CHANGES: dict[str, dict[str, Any]] = {
    "method": {"method": "PATCH"},
    "path": {"path": b"/refunds"},
    "query": {"query": b"a=1"},
    "body": {"body": b"[]"},
}


@pytest.mark.parametrize("parts", [each for size in (1, 2, 3, 4) for each in combinations(ALL_PARTS, size)])
def test_what_is_named_counts_and_nothing_else(parts: tuple[str, ...]) -> None:
    """O-39."""
    policy = IdempotencyPolicy(fingerprint_parts=list(parts), scope_by_route=True)
    plain = fingerprint(request_of(b"{}"), policy)
    for part, change in CHANGES.items():
        changed = fingerprint(request_of(**{"body": b"{}", **change}), policy)
        assert (changed != plain) == (part in parts)


def test_all_parts_make_the_fingerprint_that_earlier_versions_made() -> None:
    """O-39, B-13: in any order."""
    named = IdempotencyPolicy(fingerprint_parts=("body", "query", "path", "method"))
    assert fingerprint(request_of(b"{}"), named) == fingerprint(request_of(b"{}"), IdempotencyPolicy())


def test_without_the_body_its_media_type_does_not_count_either() -> None:
    """O-39."""
    policy = IdempotencyPolicy(fingerprint_parts=("method", "path"))
    assert fingerprint(request_of(b"a", content_type=b"text/a"), policy) == fingerprint(request_of(b"b"), policy)


@pytest.mark.parametrize(
    "fields",
    [
        {"fingerprint_parts": ()},
        {"fingerprint_parts": ("method", "path", "bodies")},
        {"fingerprint_parts": "body"},
        {"fingerprint_parts": 7},
        {"fingerprint_parts": ("body",)},
        {"fingerprint_parts": ("method", "body")},
        {"fingerprint_parts": ("method", "path"), "fingerprint": "jcs"},
    ],
)
def test_wrong_parts_are_errors_at_start(fields: dict[str, Any]) -> None:
    """O-39: an unknown name; parts without method or path, under which a key would get another endpoint's response;
    ``fingerprint=`` for a body that is left out.
    """
    with pytest.raises(ConfigurationError, match="fingerprint_parts:"):
        IdempotencyPolicy(**fields)
