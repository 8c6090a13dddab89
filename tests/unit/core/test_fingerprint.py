"""The fingerprint: which parts of two requests make them the same request."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_idempotency._core.fingerprint import VERSION, fingerprint
from open_idempotency._core.models import Request
from open_idempotency.policy import IdempotencyPolicy
from tests.unit.builders import body_of, request_of

AUTO, JSON = IdempotencyPolicy(), IdempotencyPolicy(fingerprint="json")


def of(policy: IdempotencyPolicy = AUTO, body: bytes = b"{}", **request: Any) -> bytes:
    """The fingerprint of a request."""
    return fingerprint(request_of(body, **request), policy)


def test_the_first_byte_is_the_version_of_the_rules() -> None:
    """A fingerprint of another version never matches, since its first byte differs."""
    assert of()[:1] == VERSION == b"\x01"
    assert len(of()) == 33


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PATCH"},
        {"path": b"/charges/"},
        {"path": b"/Charges"},
        {"query": b"a=1"},
        {"body": b"{} "},
        {"content_type": b"text/plain"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_component_counts(change: dict[str, Any]) -> None:
    """O-05: method, path, raw query, media type, body."""
    assert of(**change) != of()


def test_query_order_counts() -> None:
    """The raw query is compared, so its order matters."""
    assert of(query=b"a=1&b=2") != of(query=b"b=2&a=1")


def test_a_boundary_between_components_cannot_be_moved() -> None:
    """Each component is length-prefixed."""
    assert of(path=b"/a", query=b"b=1") != of(path=b"/ab", query=b"=1") != of(path=b"/", query=b"ab=1")


@given(st.tuples(*[st.binary(max_size=4)] * 3), st.tuples(*[st.binary(max_size=4)] * 3))
def test_fingerprints_are_equal_only_for_equal_components(one: tuple[bytes, ...], two: tuple[bytes, ...]) -> None:
    prints = [of(path=path, query=query, body=body) for path, query, body in (one, two)]
    assert (prints[0] == prints[1]) is (one == two)


@pytest.mark.parametrize("written", [b"application/json; charset=utf-8", b"APPLICATION/JSON", b" application/json ;x"])
def test_parameters_and_case_of_the_media_type_do_not_count(written: bytes) -> None:
    """The media type is compared without parameters and in lower case."""
    assert of(content_type=written) == of()


def test_headers_count_only_where_they_are_opted_in() -> None:
    """Headers are compared only if the policy names them, under any case of their name."""
    policy = IdempotencyPolicy(fingerprint_headers=("X-Tenant",))
    one, two = {"headers": [(b"x-tenant", b"1")]}, {"headers": [(b"x-tenant", b"2")]}
    assert of(**one) == of(**two) == of()
    assert len({of(policy, **one), of(policy, **two), of(policy)}) == 3


def test_the_values_of_one_header_cannot_pass_for_another_header() -> None:
    """Names and values of headers are length-prefixed."""
    policy = IdempotencyPolicy(fingerprint_headers=("a", "b"))
    assert of(policy, headers=[(b"a", b"b"), (b"a", b"x")]) != of(policy, headers=[(b"b", b"x"), (b"b", b"b")])


def test_duplicated_header_lines_are_not_one_joined_line() -> None:
    """Two headers of one name differ from one header with the joined value."""
    policy = IdempotencyPolicy(fingerprint_headers=("a",))
    assert of(policy, headers=[(b"a", b"1"), (b"a", b"2")]) != of(policy, headers=[(b"a", b"12")])


def test_a_secret_keys_the_digest() -> None:
    """With ``secret`` the digest is an HMAC."""
    keyed = [IdempotencyPolicy(secret=secret) for secret in (b"x" * 16, b"y" * 16)]
    assert len({of(policy) for policy in (AUTO, *keyed)}) == 3


def test_a_spooled_body_has_the_fingerprint_of_the_same_body_in_memory() -> None:
    """R-09."""
    data = bytes(range(256)) * 1024
    for content_type in (b"application/octet-stream", b'multipart/form-data; boundary="xx"'):
        spooled, held = request_of(content_type=content_type), request_of(content_type=content_type)
        spooled.body, held.body = body_of(data, spool_bytes=10), body_of(data)
        assert fingerprint(spooled, AUTO) == fingerprint(held, AUTO)
        spooled.body.close()


def test_the_way_a_body_was_chunked_does_not_count() -> None:
    """The exact bytes of the body are compared, not its chunks."""
    request = request_of(b"ab")
    assert request.body is not None
    request.body.add(b"cd")
    assert fingerprint(request, AUTO) == of(body=b"abcd")


def form(boundary: bytes, *contents: bytes) -> bytes:
    """A multipart body as clients write it."""
    head = b'--%b\r\nContent-Disposition: form-data; name="f"\r\n\r\n'
    return b"".join(head % boundary + content + b"\r\n" for content in contents) + b"--%b--\r\n" % boundary


def multipart(boundary: bytes, *contents: bytes, written: bytes | None = None, kind: bytes = b"form-data") -> bytes:
    """The fingerprint of a multipart request with this boundary."""
    content_type = b"multipart/%b; boundary=%b" % (kind, written or boundary)
    return of(body=form(boundary, *contents), content_type=content_type)


@pytest.mark.parametrize("kind", [b"form-data", b"mixed", b"related"])
def test_a_rebuilt_multipart_request_with_a_new_boundary_is_the_same(kind: bytes) -> None:
    assert multipart(b"aaa", b"1", b"2", kind=kind) == multipart(b"bbbb", b"1", b"2", kind=kind)


@pytest.mark.parametrize("contents", [(b"1", b"3"), (b"12",), (b"1",), (b"2", b"1"), (b"1", b"2", b"")])
def test_a_multipart_request_with_other_parts_is_another(contents: tuple[bytes, ...]) -> None:
    """O-05."""
    assert multipart(b"aaa", *contents) != multipart(b"aaa", b"1", b"2")


def test_a_quoted_boundary_is_the_same_boundary() -> None:
    """RFC 2046: RFC 2046 allows a boundary in quotes."""
    assert multipart(b"a:b c", b"1", written=b'"a:b c"') == multipart(b"aaa", b"1")


@pytest.mark.parametrize("written", [b"BOUNDARY=aaa", b'charset="utf-8";  boundary="aaa"', b"boundary=aaa; x=1"])
def test_the_boundary_is_found_however_the_parameters_are_written(written: bytes) -> None:
    body = form(b"aaa", b"1")
    assert of(body=body, content_type=b"multipart/form-data; " + written) == multipart(b"bbb", b"1")


@pytest.mark.parametrize("content_type", [b"multipart/form-data", b'multipart/form-data; boundary=""'])
def test_multipart_without_a_boundary_counts_byte_for_byte(content_type: bytes) -> None:
    one, two = form(b"aaa", b"1"), form(b"bbb", b"1")
    assert of(body=one, content_type=content_type) != of(body=two, content_type=content_type)


def test_with_auto_json_counts_byte_for_byte() -> None:
    """The default ``fingerprint="auto"`` compares exact bytes."""
    assert of(body=b'{"a":1}') != of(body=b'{"a": 1}')


AS_JSON = [
    b"application/json",
    b"application/vnd.api+json; v=1",
    b"text/json",
    b"text/plain;charset=UTF-8",
    b"TEXT/PLAIN",
    b"",
]


@pytest.mark.parametrize("content_type", AS_JSON)
def test_with_json_member_order_and_space_do_not_count(content_type: bytes) -> None:
    """H-13: also for JSON that is sent with another media type or none."""
    kind = {"content_type": content_type}
    assert of(JSON, b'{"a":1,"b":2}', **kind) == of(JSON, b'{ "b":2, "a":1 }', **kind)


def test_with_json_number_lexemes_count() -> None:
    assert of(JSON, b'{"a":1}') != of(JSON, b'{"a":1.0}')


@pytest.mark.parametrize("pair", [(b'{"a":1', b'{ "a":1'), (b'{"a":1,"a":1}', b'{"a":1, "a":1}')])
def test_with_json_an_ambiguous_body_counts_byte_for_byte(pair: tuple[bytes, bytes]) -> None:
    """Invalid JSON and repeated member names are compared as raw bytes."""
    assert of(JSON, pair[0]) != of(JSON, pair[1])
    assert of(JSON, pair[0]) == of(JSON, pair[0])


def test_with_json_a_request_without_a_media_type_is_read_as_json() -> None:
    """H-13: a missing header is the same as an empty one."""
    bare = [
        Request("POST", b"/charges", b"", [], None, body_of(body)) for body in (b'{"a":1,"b":2}', b'{"b": 2,"a": 1}')
    ]
    assert fingerprint(bare[0], JSON) == fingerprint(bare[1], JSON)


@pytest.mark.parametrize("content_type", [b"text/plain", b""])
@pytest.mark.parametrize("pair", [(b"pay 1", b"pay  1"), (b'{"a":1', b'{ "a":1'), (b"\xff", b"\xff "), (b"", b" ")])
def test_with_json_a_text_that_is_not_json_counts_byte_for_byte(pair: tuple[bytes, bytes], content_type: bytes) -> None:
    """H-13."""
    one, other = (of(JSON, body, content_type=content_type) for body in pair)
    assert one != other


@pytest.mark.parametrize("content_type", AS_JSON)
def test_ignored_members_do_not_count_in_any_body_that_is_read_as_json(content_type: bytes) -> None:
    """H-13: ``fingerprint_ignore``."""
    policy, kind = (
        IdempotencyPolicy(fingerprint="json", fingerprint_ignore=("/sent_at",)),
        {"content_type": content_type},
    )
    assert of(policy, b'{"sent_at":1,"x":1}', **kind) == of(policy, b'{"x":1,"sent_at":2}', **kind)
    assert of(policy, b'{"sent_at":1,"x":1}', **kind) != of(policy, b'{"x":2,"sent_at":1}', **kind)


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/x-www-form-urlencoded",
        b"application/octet-stream",
        b"text/html",
        b"application/jsonl",
        b"text/plainer",
    ],
)
def test_with_json_another_media_type_counts_byte_for_byte(content_type: bytes) -> None:
    """H-13: a form is not JSON, even if its text could be read as JSON."""
    kind = {"content_type": content_type}
    assert of(JSON, b"[1]", **kind) != of(JSON, b"[ 1]", **kind)


def test_ignored_members_do_not_count() -> None:
    """``fingerprint_ignore`` names members by JSON pointers."""
    policy = IdempotencyPolicy(fingerprint="json", fingerprint_ignore=("/meta/sent_at",))
    assert of(policy, b'{"meta":{"sent_at":1},"x":1}') == of(policy, b'{"x":1,"meta":{"sent_at":2}}')
    assert of(policy, b'{"meta":{"sent_at":1},"x":1}') != of(policy, b'{"x":2,"meta":{"sent_at":2}}')


def test_with_none_the_body_does_not_count_but_the_path_does() -> None:
    policy = IdempotencyPolicy(fingerprint="none")
    assert of(policy, b"1") == of(policy, b"2")
    assert of(policy, path=b"/other") != of(policy)


def first_byte(request: Request) -> bytes:
    """A custom fingerprint."""
    assert request.body is not None
    return request.body.read()[:1]


def test_a_callable_says_what_of_the_body_counts() -> None:
    policy = IdempotencyPolicy(fingerprint=first_byte)
    assert of(policy, b"ab") == of(policy, b"ac")
    assert of(policy, b"ab") != of(policy, b"bb")


def test_ways_of_comparing_are_distinguished() -> None:
    """After a change of policy a digest of one mode never matches a digest of another mode."""
    assert of(IdempotencyPolicy(fingerprint="none"), b"") != of(IdempotencyPolicy(fingerprint=lambda _: b""), b"")
