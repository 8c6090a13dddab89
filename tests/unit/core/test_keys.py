"""The key header, the scope of the caller, and the record id."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_idempotency._core.keys import (
    by_credentials,
    caller_scope,
    digest,
    downstream_key,
    find_key,
    key_names,
    parse_key,
    parse_value,
    record_id,
)
from open_idempotency._core.models import Identity, Request
from open_idempotency.exceptions import KeyRejected, KeyRequired, ScopeUnknown
from open_idempotency.policy import IdempotencyPolicy
from tests.unit.builders import request_of

NAME = b"idempotency-key"
UUID = "8e03978e-40d5-43e8-bc93-6894a57f9324"
BY_ROUTE = IdempotencyPolicy(scope_by_route=True)
LENIENT, STRICT = IdempotencyPolicy(), IdempotencyPolicy(profile="strict")
LONG_KEY = "k" * 16


def parse(value: bytes, policy: IdempotencyPolicy = LENIENT) -> str | None:
    """The key in one header."""
    return parse_key([(NAME, value)], policy)


# field value -> (key in the strict profile, key in the lenient one); None: refused
TABLE: list[tuple[str, bytes, str | None, str | None]] = [
    ("H-01", b'"%b"' % UUID.encode(), UUID, UUID),
    ("H-02", UUID.encode(), None, UUID),
    ("H-02", b"1", None, "1"),
    ("H-02", b"?1", None, "?1"),
    ("H-02", b":aGVsbG8=:", None, ":aGVsbG8=:"),
    ("H-02", b"!#$%&'()*+-./:<=>?@[]^_`{|}~", None, "!#$%&'()*+-./:<=>?@[]^_`{|}~"),
    ("H-03", rb'"a\"b"', 'a"b', 'a"b'),
    ("H-03", rb'"a\\b"', r"a\b", r"a\b"),
    ("H-03", rb'"a\nb"', None, None),
    ("H-03", rb'"a\ub"', None, None),
    ("H-03", b'"a\\', None, None),
    ("H-04", b'"abc', None, None),
    ("H-04", b'abc"', None, None),
    ("H-04", b'"abc"def', None, None),
    ("H-04", b'"', None, None),
    ("H-05", b' \t"abc"  ', "abc", "abc"),
    ("H-05", b'"abc";v=1', "abc", "abc"),
    ("H-05", b'"abc"; v', "abc", "abc"),
    ("H-05", b'"abc";v="x;y";w=?0', "abc", "abc"),
    ("H-05", b"  abc ", None, "abc"),
    ("H-06", b'"abc";V=1', None, None),
    ("H-06", b'"abc";', None, None),
    ("H-06", b'"abc" ;v=1', None, None),
    ("H-06", b'"a", "b"', None, None),
    ("H-06", b'("a")', None, None),
    ("H-06", b'%"x"', None, None),
    ("H-06", b"a,b", None, None),
    ("H-06", b"a;b", None, None),
    ("H-06", b"a b", None, None),
    ("H-06", rb"a\b", None, None),
    ("H-08", b"", None, None),
    ("H-08", b"  ", None, None),
    ("H-08", b'""', None, None),
    ("H-09", b"\xc3\xa9" * 8, None, None),
    ("H-09", b'"\xc3\xa9"', None, None),
    ("H-09", b'"a\x00b"', None, None),
    ("H-09", b"a\x7fb", None, None),
    ("H-09", b'"a\nb"', None, None),
    ("H-10", b'"%b"' % (b"k" * 255), "k" * 255, "k" * 255),
    ("H-10", b'"%b"' % (rb"\"" * 255), '"' * 255, '"' * 255),
    ("H-10", b"k" * 255, None, "k" * 255),
    ("H-10", b'"%b"' % (b"k" * 256), None, None),
    ("H-10", b"k" * 256, None, None),
    ("H-10", b"k" * 8192, None, None),
    ("H-10", b'"' + b"k" * 8192, None, None),
    ("H-11", b'"AbC"', "AbC", "AbC"),
]


@pytest.mark.parametrize(("line", "value", "strict", "lenient"), TABLE, ids=[f"{r[0]}:{r[1][:24]!r}" for r in TABLE])
@pytest.mark.parametrize("profile", ["strict", "lenient"])
def test_a_field_value_is_read_or_refused_as_the_profile_says(
    line: str, value: bytes, strict: str | None, lenient: str | None, profile: str
) -> None:
    """H-01 to H-11."""
    policy, wanted = {"strict": (STRICT, strict), "lenient": (LENIENT, lenient)}[profile]
    if wanted is not None:
        assert parse(value, policy) == wanted
        return
    with pytest.raises(KeyRejected):
        parse(value, policy)


def test_a_field_of_any_size_is_refused_before_it_is_parsed() -> None:
    """H-10: the work does not grow with the header; the message says that the size is wrong."""
    with pytest.raises(KeyRejected, match="1024 octets"):
        parse(b'"' + b'\\"' * 4096)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_bounded_printable_key_or_are_refused(value: bytes) -> None:
    """H-09, H-10."""
    for policy in (LENIENT, STRICT):
        try:
            text, limit = parse(value, policy), 255
        except KeyRejected as error:
            text, limit = str(error), 400
        assert text is not None
        assert re.fullmatch(f"[ -~]{{1,{limit}}}", text)


def assert_ways_agree(value: bytes) -> None:
    """A header is read, or refused, exactly as the parser alone would do it."""
    for policy in (LENIENT, STRICT):
        try:
            whole = parse_value(value, policy.profile)
        except KeyRejected:
            whole = None
        try:
            assert parse(value, policy) == whole
        except KeyRejected:
            assert whole is None


# Bytes near the forms that are read quickly: quotes and escapes in odd places, keys about as long as they may be.
NEARLY_PLAIN = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b'"', b"\\", b" ", b"\t", b"a", b",", b";", b"~", b"!", b"\x7f", b"\n"]), max_size=9).map(
        b"".join
    ),
    st.builds(lambda n, quote: quote + b"k" * n + quote, st.integers(250, 260), st.sampled_from([b"", b'"'])),
)


@given(NEARLY_PLAIN)
def test_the_quick_way_of_reading_a_field_agrees_with_the_parser(value: bytes) -> None:
    """H-01 to H-10: common forms skip the parser, and have the same result."""
    assert_ways_agree(value)


@pytest.mark.parametrize("form", [b'"a%bc"', b"a%bc", b'"%b"', b"%b"])
def test_each_octet_is_read_quickly_as_the_parser_reads_it(form: bytes) -> None:
    """H-09: each byte inside of a key, and as a whole key."""
    for octet in range(256):
        assert_ways_agree(form % bytes([octet]))


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_every_printable_key_survives_quoting(key: str) -> None:
    """H-03."""
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    assert parse(f'"{quoted}"'.encode(), STRICT) == key


@pytest.mark.parametrize("second", [b'"abc"', b'"other"'])
def test_two_field_lines_are_refused_equal_or_not(second: bytes) -> None:
    """H-07."""
    with pytest.raises(KeyRejected, match="one Idempotency-Key header"):
        parse_key([(NAME, b'"abc"'), (NAME, second)], LENIENT)


def test_an_alias_beside_the_standard_field_with_the_same_key_is_one_key() -> None:
    """H-07."""
    policy = IdempotencyPolicy(aliases=("X-Idempotency-Key",))
    assert parse_key([(NAME, b'"abc"'), (b"x-idempotency-key", b"abc")], policy) == "abc"


def test_an_alias_beside_the_standard_field_with_another_key_is_refused() -> None:
    """H-07."""
    policy = IdempotencyPolicy(aliases=("X-Idempotency-Key",))
    with pytest.raises(KeyRejected, match="different keys"):
        parse_key([(NAME, b'"abc"'), (b"x-idempotency-key", b'"abd"')], policy)


def test_an_alias_alone_carries_the_key() -> None:
    """H-07."""
    policy = IdempotencyPolicy(aliases=("X-Idempotency-Key",))
    assert parse_key([(b"x-idempotency-key", b"abc")], policy) == "abc"


def test_the_field_is_found_under_any_case_of_its_configured_names() -> None:
    """H-11: header names are compared in lower case, whatever case the policy uses."""
    names = key_names(IdempotencyPolicy(header="Idempotency-KEY", aliases=("X-Key",)))
    headers = [(b"idempotency-key", b"a"), (b"host", b"h"), (b"x-key", b"b")]
    assert find_key(headers, names) == [(b"idempotency-key", b"a"), (b"x-key", b"b")]


def test_no_field_is_no_key() -> None:
    """A request without the header passes through an optional route."""
    assert parse_key([], LENIENT) is None


def test_no_field_on_a_route_that_requires_one_is_refused() -> None:
    """O-06."""
    with pytest.raises(KeyRequired, match="Idempotency-Key"):
        parse_key([], IdempotencyPolicy(required=True))


def refuse(key: str) -> bool:
    """A ``validate`` hook that returns False."""
    return False


def test_a_validate_hook_that_returns_false_refuses() -> None:
    """H-11."""
    with pytest.raises(KeyRejected):
        parse(b"abc", IdempotencyPolicy(validate=refuse))


def test_a_validate_hook_that_raises_value_error_refuses_with_its_words() -> None:
    """H-11: so ``uuid.UUID`` itself can be a validator."""
    policy = IdempotencyPolicy(validate=uuid.UUID)
    assert parse(UUID.encode(), policy) == UUID
    with pytest.raises(KeyRejected, match="hexadecimal UUID"):
        parse(b"abc", policy)


def test_a_validate_hook_sees_the_unescaped_key() -> None:
    """H-11, H-03."""
    seen: list[str] = []

    def accept(key: str) -> bool:
        seen.append(key)
        return True

    parse(rb'"a\"b";v=1', IdempotencyPolicy(validate=accept))
    assert seen == ['a"b']


def test_a_validate_hook_that_returns_nothing_refuses() -> None:
    """H-11: so ``re.compile(...).fullmatch`` itself can be a validator; its None must not mean yes."""
    policy = IdempotencyPolicy(validate=re.compile("ord-[0-9]+").fullmatch)
    assert parse(b"ord-7", policy) == "ord-7"
    with pytest.raises(KeyRejected):
        parse(b"abc", policy)


def scope_of(headers: list[tuple[bytes, bytes]], user: str | None = None, key: str = LONG_KEY, **fields: Any) -> str:
    """The scope of a request with these headers."""
    return caller_scope(request_of(headers=headers), Identity(user), key, IdempotencyPolicy(**fields))


AUTHORIZED = [(b"authorization", b"Bearer secret")]


def test_the_scope_callable_goes_before_the_user_and_the_credentials() -> None:
    """The first of the three that applies decides."""
    assert scope_of(AUTHORIZED, "ann", scope=lambda _: "tenant-1") == "custom:tenant-1"


def test_the_verified_user_goes_before_the_credentials() -> None:
    assert scope_of(AUTHORIZED, "ann") == "user:ann"


def test_credentials_are_digested_and_not_kept() -> None:
    scope = scope_of(AUTHORIZED)
    assert scope.startswith("authorization:")
    assert "secret" not in scope


def test_two_credentials_are_two_scopes() -> None:
    assert scope_of(AUTHORIZED) != scope_of([(b"authorization", b"Bearer other")])


def test_two_authorization_lines_are_not_one_joined_line() -> None:
    """Both headers count."""
    assert scope_of([(b"authorization", b"a"), (b"authorization", b"b")]) != scope_of([(b"authorization", b"ab")])


API_KEY = [(b"x-api-key", b"ann's")]


def test_credentials_in_other_headers_make_a_caller_as_well() -> None:
    """O-15: an API key identifies a caller as an Authorization header does."""
    assert by_credentials(scope_of(API_KEY))
    assert scope_of(API_KEY) != scope_of([(b"x-api-key", b"bob's")])
    assert scope_of(API_KEY) != scope_of([(b"x-auth-token", b"ann's")])
    assert scope_of(API_KEY) != scope_of([*API_KEY, *AUTHORIZED])


def test_the_order_of_headers_with_credentials_does_not_count() -> None:
    """O-15: proxies reorder headers. The order of two values of one header counts."""
    assert scope_of([*API_KEY, *AUTHORIZED]) == scope_of([*AUTHORIZED, *API_KEY])
    twice = [(b"x-api-key", b"one"), (b"x-api-key", b"two")]
    assert scope_of(twice) != scope_of(twice[::-1])


def test_the_policy_names_the_headers_with_credentials() -> None:
    """O-15: the list of the policy replaces the default list, in any case of letters."""
    own = {"credential_headers": ["X-Merchant"]}
    assert by_credentials(scope_of([(b"x-merchant", b"7")], **own))
    assert scope_of(API_KEY, **own) == scope_of([(b"x-merchant", b" ")], **own) == "anonymous:"


@pytest.mark.parametrize("headers", [AUTHORIZED, API_KEY, []])
@pytest.mark.parametrize("fields", [{}, {"scope": lambda _: "everybody"}])
def test_a_caller_is_another_one_in_another_tenant_and_on_another_host(headers: Any, fields: Any) -> None:
    """O-16: whatever else identifies the caller."""

    def scope(tenant: str = "", host: bytes = b"a.example", **more: Any) -> str:
        request = request_of(headers=[*headers, (b"host", host)])
        return caller_scope(request, Identity(None, tenant), LONG_KEY, IdempotencyPolicy(**fields, **more))

    by_host = {"scope_by_host": True}
    seen = [
        scope(), scope("one"), scope("two"), scope(**by_host), scope(host=b"b.example", **by_host),
        scope("one", **by_host), scope("a.example"),
    ]  # fmt: skip
    assert len(set(seen)) == len(seen)
    assert scope() == scope(host=b"b.example")
    assert scope(host=b"A.Example", **by_host) == scope(**by_host)
    assert len({bool(by_credentials(each)) for each in seen}) == 1


def test_without_credentials_a_caller_is_anonymous() -> None:
    assert scope_of([]) == "anonymous:"


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"")], [(b"authorization", b"  ")]])
def test_an_anonymous_short_key_is_refused_also_behind_empty_credentials(headers: list[tuple[bytes, bytes]]) -> None:
    """Keys shorter than 16 characters can be guessed."""
    with pytest.raises(KeyRejected, match="16"):
        scope_of(headers, key="k" * 15)


def test_an_authorized_short_key_is_accepted() -> None:
    assert scope_of(AUTHORIZED, key="1").startswith("authorization:")


def test_kinds_of_scope_never_collide() -> None:
    """I10: a user may have a name that equals a scope of another kind."""
    custom = scope_of([], scope=lambda _: "user:ann")
    named_custom = scope_of([], "custom:ann")
    assert len({custom, named_custom, scope_of([], "ann"), scope_of([], scope=lambda _: "ann"), scope_of([])}) == 5


def failing(request: Request) -> str:
    """A hook with a bug."""
    raise LookupError("no tenant")


def test_a_scope_callable_that_raises_is_never_a_shared_bucket() -> None:
    with pytest.raises(ScopeUnknown) as caught:
        scope_of([], scope=failing)
    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.parametrize("nothing", [None, "", 7, b"ann"])
def test_a_scope_callable_that_names_nobody_is_never_a_shared_bucket(nothing: Any) -> None:
    with pytest.raises(ScopeUnknown):
        scope_of([], scope=lambda _: nothing)


def test_a_user_without_a_name_is_never_a_shared_bucket() -> None:
    with pytest.raises(ScopeUnknown):
        scope_of(AUTHORIZED, "")


part = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.tuples(part, part, part), st.tuples(part, part, part))
def test_record_ids_are_equal_only_for_equal_application_scope_and_key(
    one: tuple[str, ...], two: tuple[str, ...]
) -> None:
    """Each part is length-prefixed."""
    ids = [
        record_id(scope, key, request_of(), IdempotencyPolicy(application=application))
        for application, scope, key in (one, two)
    ]
    assert (ids[0] == ids[1]) is (one == two)
    assert len(ids[0]) == 32


route = st.tuples(st.sampled_from(["POST", "PATCH", "PUT"]), st.binary(max_size=4), part)


@given(route, route)
def test_by_route_record_ids_are_equal_only_for_equal_method_path_and_key(one: Any, two: Any) -> None:
    """``scope_by_route``: one key on two endpoints is two records."""
    ids = [record_id("user:a", key, request_of(method=method, path=path), BY_ROUTE) for method, path, key in (one, two)]
    assert (ids[0] == ids[1]) is (one == two)


def test_by_route_query_and_body_are_no_part_of_the_record() -> None:
    """O-05: on one endpoint a key with another request is still a mismatch and not another record."""
    requests = [request_of(b"a", query=b"q=1"), request_of(b"b", query=b"q=2")]
    assert len({record_id("user:a", "k", request, BY_ROUTE) for request in requests}) == 1


def test_by_route_a_record_is_none_of_those_without() -> None:
    """Turning ``scope_by_route`` on never finds a response that was stored for another endpoint."""
    assert record_id("user:a", "k", request_of(), BY_ROUTE) != record_id("user:a", "k", request_of(), LENIENT)


@pytest.mark.parametrize(
    ("headers", "user", "fields", "expected"),
    [
        (AUTHORIZED, None, {}, True),
        (AUTHORIZED, "ada", {}, False),
        (AUTHORIZED, None, {"scope": lambda _: "authorization:x"}, False),
        ([], None, {}, False),
    ],
)
def test_only_a_caller_without_another_identity_is_known_by_credentials(
    headers: Any, user: str | None, fields: Any, expected: bool
) -> None:
    """A caller who is identified by a token alone is another caller with the next token."""
    assert bool(by_credentials(scope_of(headers, user, **fields))) is expected


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_parts_of_a_digest_never_run_into_each_other(one: list[bytes], two: list[bytes]) -> None:
    """Each part is length-prefixed."""
    assert (digest(None, *one) == digest(None, *two)) is (one == two)


def test_moved_boundaries_between_scope_and_key_are_other_records() -> None:
    """I10: scope and key are length-prefixed."""
    assert record_id("user:a", "b", request_of(), LENIENT) != record_id("user:", "ab", request_of(), LENIENT)


def test_a_secret_changes_the_record_id() -> None:
    """With ``secret``, read access to the backend does not suffice to list or forge keys."""
    keyed = [IdempotencyPolicy(secret=secret) for secret in (b"x" * 16, b"y" * 16)]
    assert len({record_id("s", "k", request_of(), policy) for policy in (LENIENT, *keyed)}) == 3


def test_a_downstream_key_is_the_same_on_every_attempt() -> None:
    """``key_for``."""
    assert downstream_key(b"seed", "charge", None) == downstream_key(b"seed", "charge", None)


def test_a_downstream_key_differs_by_name_request_and_secret() -> None:
    """``key_for``."""
    one = [downstream_key(b"seed", "charge", None), downstream_key(b"seed", "refund", None)]
    assert len({*one, downstream_key(b"other", "charge", None), downstream_key(b"seed", "charge", b"x" * 16)}) == 4


def test_a_downstream_key_suits_any_provider() -> None:
    """``key_for``: 35 characters of a-z, 0-9 and the hyphen."""
    assert re.fullmatch("oi-[a-z0-9]{32}", downstream_key(b"seed", "charge", None))
