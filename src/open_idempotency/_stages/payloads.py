"""The payload of a ``Once`` call, by which two calls with one key are compared.

By default it is the arguments, by the names of their parameters, so that positional and keyword arguments are the same.
It is compared as a digest of canonical JSON: member order does not count, ``1`` is not ``1.0``. Dataclasses, pydantic
models, dates, decimals, UUIDs, bytes and enums are written as stage values are.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from open_idempotency._core.keys import digest
from open_idempotency._stages.annotations import is_model, masks, scalar_of
from open_idempotency.exceptions import PayloadRejected

#: the first byte of a fingerprint is the version of these rules; a stored one of another version never matches
VERSION = b"\x01"
_PARAMETER = b"once"
_MOST_DEPTH = 100


class Unset(Enum):
    """The default of ``payload=``."""

    UNSET = "UNSET"


#: no ``payload=`` was given; None means that only the key is compared
UNSET = Unset.UNSET


def arguments_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of their parameters. Raises ``TypeError`` if they do not fit."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function in C without one
        return {"args": list(args), "kwargs": dict(kwargs)}
    bound = signature.bind(*args, **kwargs)
    return dict(bound.arguments)


def fingerprint_of(payload: object, secret: bytes | None, what: str) -> bytes:
    """The fingerprint of a payload: 33 bytes. ``what``: the call, for the error. Raises ``PayloadRejected``."""
    try:
        text = json.dumps(_plain(payload, 0), allow_nan=False, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    except Exception as error:  # a class of the application's may raise anything
        reason = error if isinstance(error, _NotJson) else f"{type(error).__name__}"
        raise PayloadRejected(
            f"{what}: the payload is not JSON ({reason}); pass payload= with the values to compare, such as "
            "payload={'order': order.id}, or payload=None to compare only the key"
        ) from error
    return VERSION + digest(secret, _PARAMETER, text.encode())


class _NotJson(TypeError):
    """Why a payload is not JSON. The message contains no value."""


def _plain(value: Any, depth: int) -> object:
    """The JSON form of a value. Raises ``_NotJson``, and whatever an application's class raises."""
    if depth > _MOST_DEPTH:
        raise _NotJson(f"nested deeper than {_MOST_DEPTH}")
    kind = type(value)
    if value is None or kind in (str, int, bool):
        return value
    if kind is float:
        if not math.isfinite(value):
            raise _NotJson("NaN and infinities are not in JSON")
        return value
    scalar = scalar_of(kind)
    if scalar is not None:
        return scalar.plain(value)
    if is_model(kind):
        dumped: object = value.model_dump(mode="json")
        if masks(value.model_dump(), dumped):
            raise _NotJson(f"{kind.__name__} hides a secret, so two of them would be the same")
        return _plain(dumped, depth + 1)
    if dataclasses.is_dataclass(kind):
        return {f.name: _plain(getattr(value, f.name), depth + 1) for f in dataclasses.fields(kind)}
    if isinstance(value, str | int | float):  # of a subclass
        return _plain(next(base for base in (str, int, float) if isinstance(value, base))(value), depth + 1)
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return _members(value, depth)
    raise _NotJson(f"a {kind.__name__} has no JSON form")


def _members(value: Mapping[Any, Any], depth: int) -> dict[str, object]:
    for name in value:
        if not isinstance(name, str):
            raise _NotJson(f"a member name is of type {type(name).__name__}, not a string")
    return {str(name): _plain(item, depth + 1) for name, item in value.items()}
