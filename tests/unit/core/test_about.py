"""What a record says about its request: the stored bytes, how they are read, and what a claim writes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_idempotency._core.keys import CALLER_OCTETS, KEY_OCTETS, About, about_request, caller_of, key_of, scope_id
from open_idempotency._core.models import Request
from open_idempotency.backend import MOST_ABOUT
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.policy import IdempotencyPolicy

OWNER = bytes(range(16))
ABOUT = About("POST", "/orders/{id}", b"c" * CALLER_OCTETS, "web-1:4711", b"k" * KEY_OCTETS)


def _request(path: bytes = b"/orders/7", route: str | None = None) -> Request:
    return Request("POST", path, b"token=secret", [], None, route=route)


def test_what_is_written_is_read() -> None:
    """P-02: the worker that wrote it reads the same values."""
    assert About.decode(ABOUT.encode(OWNER), OWNER) == ABOUT


@given(st.text(), st.text(), st.text(), st.binary(max_size=20))
def test_whatever_is_written_is_short_and_can_be_read(method: str, route: str, holder: str, owner: bytes) -> None:
    """P-02: at most MOST_ABOUT bytes, cut between characters."""
    about = About(method, route, b"", holder).encode(owner)
    assert len(about) <= MOST_ABOUT
    read = About.decode(about, owner)
    assert read.caller == b""
    for whole, part in ((method, read.method), (route, read.route)):
        assert part == whole or part.endswith("…") or "?" in part


def test_a_long_route_and_a_long_host_are_cut_and_the_process_stays() -> None:
    """P-02: a route loses its end, a holder its beginning."""
    read = About.decode(About("POST", "/" + "r" * 500, b"", "h" * 500 + ":4711").encode(OWNER), OWNER)
    assert read.route.startswith("/rrr")
    assert read.route.endswith("…")
    assert read.holder.startswith("…h")
    assert read.holder.endswith(":4711")


def test_the_holder_of_another_owner_is_unknown() -> None:
    """P-02: a worker that does not know ``about`` took the record over and left it unchanged."""
    read = About.decode(ABOUT.encode(OWNER), b"another owner...")
    assert (read.holder, read.route, read.caller) == ("", ABOUT.route, ABOUT.caller)


@pytest.mark.parametrize(
    "about",
    [b"", b"\x01", b"foreign", b"\x02" + ABOUT.encode(OWNER)[1:], ABOUT.encode(OWNER)[:23], b"\x01" + b"\xff" * 60],
)
def test_what_cannot_be_read_is_unknown(about: bytes) -> None:
    """P-02: bytes of an earlier version, a later version or another application are no error."""
    assert About.decode(about, OWNER) == About()


@given(st.binary(max_size=MOST_ABOUT))
def test_any_bytes_are_read_without_an_error(about: bytes) -> None:
    """P-02: no stored bytes can break a command for operators."""
    assert isinstance(About.decode(about, OWNER), About)


def test_a_request_is_known_by_its_template_or_by_its_path_without_the_query() -> None:
    """P-02: the query, which may hold a token, is never stored."""
    policy = IdempotencyPolicy()
    known = About.decode(about_request(_request(route="/orders/{id}"), "user:1", "key", OWNER, "h:1", policy), OWNER)
    assert (known.method, known.route, known.holder) == ("POST", "/orders/{id}", "h:1")
    assert About.decode(about_request(_request(), "user:1", "key", OWNER, "h:1", policy), OWNER).route == "/orders/7"


def test_with_encryption_no_path_is_stored() -> None:
    """P-02: a path may contain personal data; a route template does not."""
    policy = IdempotencyPolicy(encryption=EncryptionKeys({"2026": os.urandom(32)}))
    about = about_request(_request(b"/people/anna@example.org"), "user:1", "key", OWNER, "h:1", policy)
    assert b"anna" not in about
    assert About.decode(about, OWNER).route == ""
    about = about_request(_request(route="/people/{email}"), "user:1", "key", OWNER, "h:1", policy)
    assert About.decode(about, OWNER).route == "/people/{email}"


def test_a_caller_is_stood_for_by_a_digest_that_the_secret_keys() -> None:
    """P-02: the records of one caller share one digest; other applications and other secrets have other digests."""
    plain, named = IdempotencyPolicy(), IdempotencyPolicy(application="shop")
    keyed = IdempotencyPolicy(secret=b"s" * 32)
    digests = [caller_of("user:anna", policy) for policy in (plain, named, keyed)]
    assert len(set(digests)) == 3
    assert [len(digest) for digest in digests] == [CALLER_OCTETS] * 3
    assert digests[0] == scope_id("user:anna", plain)[:CALLER_OCTETS]
    about = about_request(_request(), "user:anna", "key", OWNER, "h:1", plain)
    assert b"anna" not in about
    assert About.decode(about, OWNER).caller == digests[0]


def test_a_key_is_stood_for_by_a_digest_whoever_sent_it() -> None:
    """P-02: the records of all callers of one key are found by the key alone."""
    policy = IdempotencyPolicy()
    read = [
        About.decode(about_request(_request(), scope, "key", OWNER, "h:1", policy), OWNER).key
        for scope in ("user:anna", "user:bert")
    ]
    assert read == [key_of("key", policy)] * 2
    assert key_of("another", policy) != read[0] != key_of("key", IdempotencyPolicy(application="shop"))
