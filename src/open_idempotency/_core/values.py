"""Stage values as JSON and back: plain JSON, and dataclasses and pydantic models by declared type.

A value always goes through its JSON form, on the first attempt too, so that a view sees the same thing whether a
stage has just run or was recorded by an attempt that died. What would not come back as it was is refused when it is
saved. Types are never looked up by a stored name.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Union

from open_idempotency.exceptions import StageValueError

_UNIONS = (Union, types.UnionType)
_SCALARS = (str, int, float, bool, type(None))
_UNDECLARED = (None, Any, object)
# Abstract declarations are built as the container that JSON has for them.
_CONTAINERS: Mapping[object, type] = {
    list: list,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    tuple: tuple,
    dict: dict,
    collections.abc.Mapping: dict,
    collections.abc.MutableMapping: dict,
}


def encode(value: object, declared: object, max_bytes: int) -> bytes:
    """The JSON text of a stage value. ``declared``: its type, or None where none was given.

    Raises ``StageValueError``: not JSON, a type that is not declared, or more than ``max_bytes``.
    """
    try:
        text = json.dumps(_plain(value, declared), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        payload = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StageValueError(
            f"a stage value must be JSON, a dataclass or a pydantic model: {error}; save a text, a number or an id"
        ) from error
    if len(payload) > max_bytes:
        raise StageValueError(
            f"a stage value of {len(payload)} bytes is over max_stage_bytes ({max_bytes}); "
            "save an id, and keep the thing itself in your database"
        )
    return payload


def _plain(value: object, declared: object) -> object:
    if _is_dataclass(value) or _is_model(type(value)):
        return _dumped(value, declared)
    if isinstance(value, list | tuple):
        return [_plain(item, _item_type(declared, at)) for at, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"member name {key!r} is not a string")
        return {key: _plain(item, _item_type(declared, 1)) for key, item in value.items()}
    return value


def _dumped(value: Any, declared: object) -> object:
    kind: Any = type(value)
    found = _alone(declared)
    if kind not in (found, typing.get_origin(found)):
        raise TypeError(
            f"{kind.__name__} needs a declared type to be read back, and {declared!r} does not say it: annotate the "
            f"function's return type, or pass returns={kind.__name__}"
        )
    if _is_model(kind):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    hints = typing.get_type_hints(kind)
    return {f.name: _plain(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}


def _alone(declared: object) -> object:
    """The one type in ``X | None``; any other declaration as it is."""
    if typing.get_origin(declared) in _UNIONS:
        kinds = [kind for kind in typing.get_args(declared) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else declared
    return declared


def _item_type(declared: object, at: int) -> object:
    """The declared type of a container's item: at a position of a tuple, of a list, of a mapping's values."""
    declared = _alone(declared)
    container, arguments = _CONTAINERS.get(typing.get_origin(declared)), typing.get_args(declared)
    if container is None or not arguments:
        return None
    if container is list or arguments[-1] is Ellipsis:
        return arguments[0]
    return arguments[at] if at < len(arguments) else None


def decode(payload: bytes, declared: object) -> Any:
    """The value in a JSON text, built as the declared type. Raises ``StageValueError``."""
    try:
        return _build(json.loads(payload), declared)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise StageValueError(f"a saved stage value does not fit {declared!r}: {error}") from error


def _build(value: Any, declared: Any) -> Any:
    if declared in _UNDECLARED or value is None:
        return value
    kind: Any = _alone(declared)
    if _is_model(kind):
        return kind.model_validate(value)
    if isinstance(value, _SCALARS):
        return value
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in _UNIONS:
        return _build_union(value, arguments)
    container = _CONTAINERS.get(origin)
    if container is not None:
        return _build_container(value, container, arguments)
    if isinstance(origin, type) and dataclasses.is_dataclass(origin):
        return _build_dataclass(value, origin)
    return value


def _build_union(value: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(value, dict) and any(_is_model(c) or dataclasses.is_dataclass(c) for c in arguments):
        raise TypeError("a union of several types cannot be told apart; declare one type")
    return value


def _build_container(value: Any, container: type, arguments: tuple[Any, ...]) -> Any:
    if isinstance(value, dict) is not (container is dict):
        raise TypeError(f"expected a {container.__name__}, got a {type(value).__name__}")
    if not arguments:
        return container(value)
    if container is dict:
        return {key: _build(item, arguments[1]) for key, item in value.items()}
    if container is list or arguments[-1] is Ellipsis:
        return container(_build(item, arguments[0]) for item in value)
    return tuple(_build(item, kind) for item, kind in zip(value, arguments, strict=True))


def _build_dataclass(value: Any, declared: type) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"expected the members of {declared.__name__}, got a {type(value).__name__}")
    hints = typing.get_type_hints(declared)
    # A field that the recording version of the class did not have takes its default.
    fields = (f for f in dataclasses.fields(declared) if f.init and f.name in value)
    return declared(**{f.name: _build(value[f.name], hints[f.name]) for f in fields})


def _is_dataclass(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_model(kind: object) -> bool:
    """A pydantic model class, told by its methods: pydantic is not imported here."""
    return isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


def declared_type(function: Callable[..., object]) -> object:
    """The return annotation of a function, or None where it has none that can be resolved; a class makes itself."""
    target: Any = getattr(function, "func", function)  # functools.partial
    if isinstance(target, type):
        return target
    try:
        returns = typing.get_type_hints(target).get("return")
    except (TypeError, NameError, AttributeError):
        return None
    return None if returns is type(None) else returns
