"""Type checkers see the policy's fields as keyword arguments of every adapter."""

from __future__ import annotations

import dataclasses

from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.rules import PolicyFields


def test_type_checkers_see_every_field() -> None:
    """Every adapter takes policy fields as keywords."""
    fields = {field.name for field in dataclasses.fields(IdempotencyPolicy)}

    assert set(PolicyFields.__annotations__) == fields
