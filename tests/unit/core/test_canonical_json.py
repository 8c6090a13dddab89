"""Canonical JSON: equal for texts that differ only in member order, white space and escapes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_idempotency._core.fingerprint import (
    MAX_DEPTH,
    NotCanonical,
    by_orjson,
    by_standard_library,
    canonical_json,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a":1,"b":2}', b' { "b" : 2 ,\n"a":1}\t'),
        (b'"\\u0061"', b'"a"'),
        (b'{"\\u0061":1}', b'{"a":1}'),
        (b'"\\/"', b'"/"'),
        ('"é"'.encode(), b'"\\u00e9"'),
        (b'"\\ud83d\\ude00"', '"😀"'.encode()),
    ],
)
def test_the_freedom_of_writing_does_not_count(one: bytes, other: bytes) -> None:
    """Member order, white space and escapes do not matter."""
    assert canonical_json(one) == canonical_json(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"1", b"1.0"),
        (b"1e2", b"100"),
        (b"1E2", b"1e2"),
        (b"0", b"-0"),
        (b"1", b'"1"'),
        (b"[1,2]", b"[2,1]"),
        (b"[]", b"{}"),
        (b"null", b'"null"'),
        (b"true", b'"true"'),
        (b'{"a":null}', b"{}"),
        (b'["a","b"]', b'["a\\",\\"b"]'),
        (b"9007199254740993", b"9007199254740992"),
    ],
)
def test_everything_else_counts(one: bytes, other: bytes) -> None:
    """Number lexemes, array order and types matter."""
    assert canonical_json(one) != canonical_json(other)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"{'a':1}",
        b"[1,]",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b'{"a":1}x',
        b'"\xff"',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'[{"x":{"a":1,"a":2}}]',
    ],
)
def test_a_text_that_readers_may_disagree_about_has_no_canonical_form(raw: bytes) -> None:
    """Invalid JSON, and repeated member names."""
    with pytest.raises(NotCanonical):
        canonical_json(raw)


def test_a_lone_surrogate_is_just_a_string() -> None:
    """A lone surrogate is valid JSON; it differs from other strings and does not crash."""
    form = canonical_json(b'{"\\ud800":1}')
    assert form != canonical_json(b'{"\\udc00":1}')
    assert form != canonical_json(b'{"\\\\ud800":1}')
    assert form == canonical_json(form)


def test_a_long_number_costs_no_conversion() -> None:
    """I11: lexemes stay text, so Python's limit for integers is not reached."""
    assert canonical_json(b"1" * 10_000) == b"1" * 10_000


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5_000, 200_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_has_no_canonical_form_and_does_not_crash(depth: int, pair: tuple[bytes, bytes]) -> None:
    """I11: the depth is bounded."""
    with pytest.raises(NotCanonical):
        canonical_json(pair[0] * depth + b"1" + pair[1] * depth)


def nested(calls: int, raw: bytes) -> bytes:
    """The canonical form, computed this many calls deeper in the stack."""
    return canonical_json(raw) if calls == 0 else nested(calls - 1, raw)


def test_what_is_too_deep_does_not_depend_on_the_caller() -> None:
    """The same body has the same fingerprint at any depth of the call stack."""
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert nested(200, deepest) == canonical_json(deepest)


@pytest.mark.parametrize(
    ("pointer", "raw", "left"),
    [
        ("/a", b'{"a":1,"b":2}', b'{"b":2}'),
        ("/a/b", b'{"a":{"b":1,"c":2}}', b'{"a":{"c":2}}'),
        ("/a~1b", b'{"a/b":1,"c":2}', b'{"c":2}'),
        ("/a~0b", b'{"a~b":1,"c":2}', b'{"c":2}'),
        ("/a~01b", b'{"a~1b":1,"c":2}', b'{"c":2}'),
        ("/", b'{"":1,"c":2}', b'{"c":2}'),
        ("/items/1/at", b'{"items":[{"at":1},{"at":2}]}', b'{"items":[{"at":1},{}]}'),
        ("/0", b"[1,2]", b"[null,2]"),
        ("/missing/deeper", b'{"a":1}', b'{"a":1}'),
        ("/a/x", b'{"a":1}', b'{"a":1}'),
        ("/a/x", b'{"a":"text"}', b'{"a":"text"}'),
        ("/items/7/at", b'{"items":[]}', b'{"items":[]}'),
        ("/items/-", b'{"items":[1]}', b'{"items":[1]}'),
        ("/a", b"3", b"3"),
    ],
)
def test_ignored_members_are_left_out(pointer: str, raw: bytes, left: bytes) -> None:
    """JSON pointers name ignored members, with RFC 6901 escapes; a missing member is no error."""
    assert canonical_json(raw, [pointer]) == canonical_json(left)


def test_two_ignored_elements_of_one_array_do_not_shift_each_other() -> None:
    assert canonical_json(b"[1,2,3]", ["/0", "/1"]) == canonical_json(b"[8,9,3]", ["/0", "/1"])


class Lexeme(str):
    """A number in the form in which it was written."""

    __slots__ = ()


lexemes = st.sampled_from(["0", "-0", "1", "1.0", "1e0", "1E0", "10", "100e-1"]).map(Lexeme)
values = st.recursive(
    st.none() | st.booleans() | lexemes | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def write(value: Any, draw: Any) -> str:
    """A JSON text for a value, with white space, escapes and member order drawn at random."""
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    if isinstance(value, Lexeme):
        return space + value
    if isinstance(value, list):
        return space + "[" + ",".join(write(item, draw) for item in value) + space + "]"
    if isinstance(value, dict):
        names = draw(st.permutations(list(value)))
        return "{" + ",".join(f"{write(name, draw)}{space}:{write(value[name], draw)}" for name in names) + "}"
    return space + json.dumps(value, ensure_ascii=draw(st.booleans()))


def tagged(value: Any) -> Any:
    """The value with each type marked, as Python treats 1, True and 1.0 as equal."""
    if isinstance(value, list):
        return [tagged(item) for item in value]
    if isinstance(value, dict):
        return {name: tagged(item) for name, item in value.items()}
    return type(value).__name__, value


@given(values, values, st.data())
def test_forms_are_equal_exactly_for_equal_values_with_equal_lexemes(one: Any, other: Any, data: Any) -> None:
    forms = [canonical_json(write(value, data.draw).encode("utf-8", "surrogatepass")) for value in (one, other)]
    assert (forms[0] == forms[1]) is (tagged(one) == tagged(other))


@given(values, st.data())
def test_the_form_of_a_value_does_not_depend_on_how_it_was_written(value: Any, data: Any) -> None:
    texts = [write(value, data.draw).encode("utf-8", "surrogatepass") for _ in range(2)]
    assert canonical_json(texts[0]) == canonical_json(texts[1])


@given(st.binary(max_size=60))
def test_any_bytes_have_a_form_or_are_refused(raw: bytes) -> None:
    """I11: no other error is raised, and the canonical form of a canonical form is itself."""
    try:
        form = canonical_json(raw)
    except NotCanonical:
        return
    assert canonical_json(form) == form


def form_or_nothing(raw: bytes, ignore: list[str]) -> bytes | None:
    """The canonical form by the standard library; None for a text that has none."""
    try:
        return by_standard_library(raw, ignore)
    except NotCanonical:
        return None


def assert_orjson_changes_nothing(raw: bytes, ignore: list[str]) -> None:
    """With orjson the outcome is the same as without it, be it a form or a refusal."""
    by_it = by_orjson(raw, ignore)
    assert by_it is None or by_it == form_or_nothing(raw, ignore)


numbers = st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=4) | st.sampled_from(["a", "b", "é", "\x7f", "\uffff", "😀"])
plain_values = st.recursive(
    st.none() | st.booleans() | numbers | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)
pointers = st.lists(st.sampled_from(["/a", "/b", "/a/b", "/0", "/1/a", "/", "/é"]), max_size=2)


@given(plain_values, st.booleans(), st.sampled_from([(",", ":"), (", ", ":"), (",", ": ")]), pointers)
def test_what_a_client_writes_has_one_form_with_orjson_and_without(
    value: Any, ascii_only: bool, separators: tuple[str, str], ignore: list[str]
) -> None:
    """orjson is used when it is installed, and changes no result."""
    text = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
    assert_orjson_changes_nothing(text.encode(), ignore)


@given(values, st.data(), pointers)
def test_any_way_of_writing_has_one_form_with_orjson_and_without(value: Any, data: Any, ignore: list[str]) -> None:
    """Lexemes, escapes, white space and the order of members."""
    assert_orjson_changes_nothing(write(value, data.draw).encode("utf-8", "surrogatepass"), ignore)


@given(plain_values, st.integers(0, 200), st.sampled_from(list(b'{}[]",:0.eE-\\u tn\x7f\xc3')), pointers)
def test_a_damaged_text_has_one_outcome_with_orjson_and_without(
    value: Any, place: int, byte: int, ignore: list[str]
) -> None:
    """Invalid JSON has the same outcome."""
    raw = bytearray(orjson.dumps(_bounded(value)))
    raw[place % len(raw)] = byte
    assert_orjson_changes_nothing(bytes(raw), ignore)


@given(st.lists(st.tuples(st.sampled_from("abc"), lexemes), max_size=5))
def test_repeated_members_have_one_outcome_with_orjson_and_without(members: list[tuple[str, str]]) -> None:
    """Repeated member names have the same outcome."""
    raw = ("{" + ",".join(f'"{name}":{lexeme}' for name, lexeme in members) + "}").encode()
    assert_orjson_changes_nothing(raw, [])


def _bounded(value: Any) -> Any:
    """The value with its integers within the 64 bits that orjson writes."""
    if isinstance(value, list):
        return [_bounded(item) for item in value]
    if isinstance(value, dict):
        return {name: _bounded(item) for name, item in value.items()}
    return value % 2**63 if type(value) is int else value


@pytest.mark.parametrize(
    "raw",
    [
        b'{"b":1,"a":[1.5,-2,null,true,false]}',
        '{"é":"😀","a":"\x7f\\n\\u0001\\\\\\""}'.encode(),
        b"18446744073709551615",
        b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH,
    ],
)
def test_orjson_takes_what_it_writes_back(raw: bytes) -> None:
    """orjson reads what it writes, so the comparisons above do compare something."""
    assert by_orjson(raw) == by_standard_library(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1}',
        b"[1, 2]",
        b"1.0e0",
        b"[1e2]",
        b"-0",
        b"18446744073709551616",
        b"0.1000000000000000055511151231257827",
        b'{"a":1,"a":1}',
        b'"\\u0061"',
        b'"\\/"',
        b'"\\ud800"',
        b"NaN",
        b'"\xff"',
        b'\xef\xbb\xbf{"a":1}',
        b"{",
        b"",
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    ],
)
def test_orjson_leaves_what_it_would_change(raw: bytes) -> None:
    """Lexemes, repeated names and texts that orjson refuses are left to the standard library."""
    assert by_orjson(raw) is None


def test_without_orjson_the_standard_library_does_it_all() -> None:
    """orjson is optional; an interpreter without it produces the same form."""
    code = (
        "import sys; sys.modules['orjson'] = None\n"
        "from open_idempotency._core.fingerprint import by_orjson, canonical_json\n"
        "print(by_orjson(b'[1]'), canonical_json(b'{\"b\":1,\"a\":2}'))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == """None b'{"a":2,"b":1}'"""
