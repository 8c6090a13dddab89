"""The engine of an adapter, the rules on views, and the request bodies that it receives."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from open_idempotency._engine.bodies import PIECE, RequestBody
from open_idempotency._engine.engine import Engine, new_owner
from open_idempotency.backends.memory import AsyncMemoryBackend, MemoryBackend
from open_idempotency.exceptions import BodyTooLarge, ConfigurationError
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.rules import Rule, combine, exempt, idempotent, rules_on
from tests.unit.builders import body_of, engine_of


def rule_of(view: Any) -> Rule | None:
    """The fields of a view's rule for POST."""
    return combine(rules_on(view, "POST"))


class Slow(MemoryBackend):
    """A backend whose calls may take long."""

    call_timeout = 5.0


def test_a_missing_backend_is_refused_at_start() -> None:
    """Bad input; the message shows what to write."""
    with pytest.raises(ConfigurationError, match=r'^backend: none given; pass a URL such as backend="sqlite:///'):
        Engine(None, None, {}, threads=False)


@pytest.mark.parametrize("lease", [4.0, 5.0])
def test_a_lease_that_a_backend_call_can_outlast_is_refused(lease: float) -> None:
    """B-10: every call has a timeout well below the lease."""
    with pytest.raises(ConfigurationError, match=r"^lease: "):
        engine_of(Slow(), lease=lease)


def test_a_route_whose_lease_a_backend_call_can_outlast_is_refused() -> None:
    """B-10."""
    engine = engine_of(Slow(), lease=30)
    rule = rule_of(idempotent(lease=2)(lambda: None))
    with pytest.raises(ConfigurationError, match=r"^lease: "):
        engine.policy_for(rule)


def test_an_async_backend_serves_sync_and_async() -> None:
    """A backend instance may be sync or async."""
    backend = AsyncMemoryBackend()
    engine = engine_of(backend)
    assert engine.backend is backend.to_sync()
    assert engine.aio.backend is backend


def test_a_view_without_a_rule_has_the_engines_policy() -> None:
    engine = engine_of(wait=3)
    assert engine.policy_for(rule_of(lambda: None)) is engine.policy


def test_a_rule_changes_its_fields_and_keeps_the_others() -> None:
    """A rule may set any policy field."""
    policy = engine_of(wait=3).policy_for(rule_of(idempotent(required=True)(lambda: None)))
    assert policy is not None
    assert (policy.required, policy.wait) == (True, 3.0)


def test_a_rules_policy_is_made_once() -> None:
    """The policy of a rule is cached, for speed."""
    engine, rule = engine_of(), rule_of(idempotent(required=True)(lambda: None))
    assert engine.policy_for(rule) is engine.policy_for(rule)


def test_one_rule_under_two_engines_has_each_ones_policy() -> None:
    """A view may be mounted in two applications."""
    rule = rule_of(idempotent(required=True)(lambda: None))
    one, two = (engine_of(wait=wait).policy_for(rule) for wait in (1, 2))
    assert one is not None
    assert two is not None
    assert (one.wait, two.wait) == (1.0, 2.0)


def test_an_exempt_view_has_no_policy() -> None:
    assert engine_of().policy_for(rule_of(exempt(lambda: None))) is None


def test_the_decorators_return_the_view_itself() -> None:
    """Decorators only mark the view."""

    def view() -> None: ...

    assert idempotent(view) is view
    assert idempotent(required=True)(view) is view
    assert exempt(view) is view


def test_an_unknown_field_of_a_rule_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"^requird: .* did you mean required"):
        idempotent(requird=True)


@pytest.mark.parametrize("attribute", ["view_class", "cls"])
def test_the_rule_of_a_class_is_found_behind_its_view_function(attribute: str) -> None:
    """Class-based views of Django, Flask and DRF."""

    @exempt
    class View:
        pass

    def view() -> None: ...

    setattr(view, attribute, View)
    rule = rule_of(view)
    assert rule is not None
    assert rule.exempt


def test_each_request_has_an_owner_id_of_its_own() -> None:
    """B-08: 16 random bytes."""
    owners = {new_owner() for _ in range(100)}
    assert len(owners) == 100
    assert {len(owner) for owner in owners} == {16}


@pytest.mark.parametrize("spool_bytes", [0, 10, 10**6])
def test_a_body_comes_back_as_often_as_asked(spool_bytes: int) -> None:
    """R-09: from memory and from disk."""
    data = bytes(range(256)) * 600
    body = body_of(data, spool_bytes=spool_bytes)
    assert body.read() == b"".join(body.chunks()) == body.read() == data
    assert body.file().read() == data
    body.close()


def test_a_spooled_body_is_given_in_bounded_pieces_with_the_end_marked() -> None:
    """R-09."""
    body = body_of(b"x" * (2 * PIECE + 1), spool_bytes=0)
    assert [(len(piece), more) for piece, more in body.pieces()] == [(PIECE, True), (PIECE, True), (1, False)]
    body.close()


@pytest.mark.parametrize("spool_bytes", [0, 100])
def test_an_empty_body_is_one_last_piece_or_none(spool_bytes: int) -> None:
    """R-09: an ASGI application needs one message to see the end."""
    assert list(body_of(b"", spool_bytes=spool_bytes).pieces()) == [(b"", False)]


def test_a_body_over_the_limit_is_refused_while_it_is_received() -> None:
    """O-07."""
    body = RequestBody(IdempotencyPolicy(max_request_bytes=10))
    body.add(b"x" * 10)
    with pytest.raises(BodyTooLarge):
        body.add(b"x")


@pytest.mark.parametrize("declared", [b"11", "11", b"9" * 5000, "9" * 5000])
def test_a_declared_length_over_the_limit_is_refused_before_reading(declared: Any) -> None:
    """O-07, I11."""
    with pytest.raises(BodyTooLarge):
        RequestBody(IdempotencyPolicy(max_request_bytes=10)).check_length(declared)


@pytest.mark.parametrize("declared", [None, b"", b"10", "10", b"-1", b"1_1", "\u00b2", "x"])
def test_a_declared_length_within_the_limit_or_that_is_none_passes(declared: Any) -> None:
    """O-07: the received bytes are counted anyway."""
    RequestBody(IdempotencyPolicy(max_request_bytes=10)).check_length(declared)


# Several rules on one view


def fields_of(view: Any) -> dict[str, Any]:
    """The fields of a view's rule."""
    rule = rule_of(view)
    return {} if rule is None else dict(rule.fields)


def test_a_class_adds_to_what_its_base_says() -> None:
    """A subclass keeps ``required`` of its base."""

    @idempotent(required=True, wait=1)
    class Base:
        pass

    @idempotent(wait=2)
    class Derived(Base):
        pass

    assert fields_of(Derived) == {"required": True, "wait": 2}
    assert fields_of(Base) == {"required": True, "wait": 1}


def test_of_two_decorators_the_upper_one_decides_and_adds() -> None:
    """The upper decorator is applied later, as with all decorators."""
    assert fields_of(idempotent(wait=2)(idempotent(required=True, wait=1)(lambda: None))) == {
        "required": True,
        "wait": 2,
    }


def test_of_exempt_and_idempotent_the_upper_one_decides() -> None:
    rule = rule_of(exempt(idempotent(required=True)(lambda: None)))
    assert rule is not None
    assert rule.exempt
    assert fields_of(idempotent(wait=2)(exempt(lambda: None))) == {"wait": 2}


def test_a_method_adds_to_what_a_view_and_its_class_say() -> None:
    """The class, the view made by ``as_view()``, the method: the rule nearest to the code decides."""

    @idempotent(required=True, wait=1, ttl=60)
    class View:
        @idempotent(wait=3)
        def post(self) -> None: ...

    def view() -> None: ...

    view.view_class = View
    assert fields_of(idempotent(wait=2, lease=9)(view)) == {"required": True, "ttl": 60, "lease": 9, "wait": 3}


def test_a_partial_adds_to_what_its_function_says() -> None:
    """Starlette accepts partials as endpoints."""
    inner = idempotent(required=True, wait=1)(lambda shop: None)
    assert fields_of(idempotent(wait=2)(partial(inner, "shop"))) == {"required": True, "wait": 2}
