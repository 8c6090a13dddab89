"""Stage values as JSON and back: plain JSON, and dataclasses and pydantic models by declared type.

A value always goes through its JSON form, on the first attempt too, so that a view sees the same thing whether a
stage has just run or was recorded by an attempt that died. What would not come back as it was is refused when it is
saved. Types are never looked up by a stored name.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Union

from open_idempotency.exceptions import StageValueError

_UNIONS = (Union, types.UnionType)


def encode(value: object, declared: object, max_bytes: int) -> bytes:
    """The JSON text of a stage value. ``declared``: its type, or None where none was given.

    Raises ``StageValueError``: not JSON, a type that is not declared, or more than ``max_bytes``.
    """
    try:
        text = json.dumps(_plain(value, declared), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        payload = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StageValueError(f"a stage value must be JSON: {error}") from error
    if len(payload) > max_bytes:
        raise StageValueError(
            f"a stage value of {len(payload)} bytes is over max_stage_bytes ({max_bytes}); "
            "save an id, and keep the thing itself in your database"
        )
    return payload


def _plain(value: object, declared: object) -> object:
    if _is_dataclass(value) or _is_model(type(value)):
        if declared is None:
            raise TypeError(
                f"{type(value).__name__} needs a declared type to be read back: annotate the function's return type, "
                f"or pass returns={type(value).__name__}"
            )
        return _dumped(value)
    if isinstance(value, list | tuple):
        return [_plain(item, declared) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"member name {key!r} is not a string")
        return {key: _plain(item, declared) for key, item in value.items()}
    return value


def _dumped(value: Any) -> object:
    if _is_model(type(value)):
        return value.model_dump(mode="json")
    return {f.name: _plain(getattr(value, f.name), f.type) for f in dataclasses.fields(value)}


def decode(payload: bytes, declared: object) -> Any:
    """The value in a JSON text, built as the declared type. Raises ``StageValueError``."""
    try:
        return _build(json.loads(payload), declared)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise StageValueError(f"a saved stage value does not fit {declared!r}: {error}") from error


def _build(value: Any, declared: Any) -> Any:
    if declared is None or declared is Any or value is None:
        return value
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in _UNIONS:
        return _build_union(value, arguments)
    if origin in (list, tuple, dict):
        return _build_container(value, origin, arguments)
    if _is_model(declared):
        return declared.model_validate(value)
    if isinstance(declared, type) and dataclasses.is_dataclass(declared):
        return _build_dataclass(value, declared)
    if declared is tuple:
        return tuple(value)
    return value


def _build_union(value: Any, arguments: tuple[Any, ...]) -> Any:
    candidates = [argument for argument in arguments if argument is not type(None)]
    if len(candidates) == 1:
        return _build(value, candidates[0])
    if any(_is_model(c) or dataclasses.is_dataclass(c) for c in candidates) and isinstance(value, dict):
        raise TypeError("a union of several types cannot be told apart; declare one type")
    return value


def _build_container(value: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:
    if origin is dict:
        return {key: _build(item, arguments[1]) for key, item in value.items()}
    if origin is list or arguments[-1] is Ellipsis:
        return origin(_build(item, arguments[0]) for item in value)
    return tuple(_build(item, kind) for item, kind in zip(value, arguments, strict=True))


def _build_dataclass(value: Any, declared: type) -> Any:
    hints = typing.get_type_hints(declared)
    members = {f.name: _build(value[f.name], hints[f.name]) for f in dataclasses.fields(declared) if f.init}
    return declared(**members)


def _is_dataclass(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_model(kind: object) -> bool:
    """A pydantic model class, told by its methods: pydantic is not imported here."""
    return isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


def declared_type(function: Callable[..., object]) -> object:
    """The return annotation of a function, or None where it has none that can be resolved."""
    target: Any = getattr(function, "func", function)  # functools.partial
    try:
        returns = typing.get_type_hints(target).get("return")
    except (TypeError, NameError, AttributeError):
        return None
    return None if returns is type(None) else returns
