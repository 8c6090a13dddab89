"""Declared types of stage values, and the JSON forms of types that JSON lacks.

Dates and times, decimals, UUIDs, bytes and enums are written as JSON and read by their declared type. The value that is
read equals the one that was written, with its digits, microseconds, zone and fold. The rest of this module reads
annotations: what is inside ``Annotated`` and the like, the types of items, and types that can never be stored.
"""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from typing import Annotated, Any, NamedTuple, TypeGuard, Union
from uuid import UUID
from zoneinfo import ZoneInfo

# Types that JSON lacks

_MICROSECOND = timedelta(microseconds=1)


class Scalar(NamedTuple):
    """How values of one type are written and read. ``exact``: returns a key that is equal only for equal values."""

    plain: Callable[[Any], object]
    build: Callable[[Any], Any]
    exact: Callable[[Any], object]


def _plain_moment(value: datetime | time) -> object:
    """ISO 8601 text, or an object if there is a zone or a fold, which the text cannot hold."""
    zone = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else None
    if zone is None and not (value.fold and value.tzinfo is None):
        return value.isoformat()
    naive = value.replace(tzinfo=None)
    return {"naive": naive.isoformat(), "zone": zone, "fold": value.fold}


def _build_moment(kind: type[datetime] | type[time], data: Any) -> Any:
    if isinstance(data, str):
        return kind.fromisoformat(data)
    zone = None if data["zone"] is None else ZoneInfo(data["zone"])
    return kind.fromisoformat(data["naive"]).replace(tzinfo=zone, fold=data["fold"])


def _exact_moment(value: datetime | time) -> object:
    # Moments of two zones are never equal in the hour in which a clock is set back, so parts are compared.
    return value.replace(tzinfo=None), value.utcoffset()


def _plain_bytes(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode("ascii")


def _build_bytes(data: str) -> bytes:
    return base64.b64decode(data, validate=True)


def _plain_decimal(value: Decimal) -> str:
    return str(value)


def _plain_duration(value: timedelta) -> int:
    """Microseconds, as an integer of any size."""
    return value // _MICROSECOND


def _build_duration(data: int) -> timedelta:
    return data * _MICROSECOND


def _build_bytearray(data: str) -> bytearray:
    return bytearray(_build_bytes(data))


def _itself(value: Any) -> object:
    return value


_SCALARS: dict[object, Scalar] = {
    UUID: Scalar(str, UUID, _itself),
    Decimal: Scalar(_plain_decimal, Decimal, Decimal.as_tuple),
    datetime: Scalar(_plain_moment, partial(_build_moment, datetime), _exact_moment),
    date: Scalar(date.isoformat, date.fromisoformat, _itself),
    time: Scalar(_plain_moment, partial(_build_moment, time), _exact_moment),
    timedelta: Scalar(_plain_duration, _build_duration, _itself),
    bytes: Scalar(_plain_bytes, _build_bytes, _itself),
    bytearray: Scalar(_plain_bytes, _build_bytearray, _itself),
}


def scalar_of(kind: object) -> Scalar | None:
    """How values of this declared type are written; None for any other type."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return Scalar(_plain_enum, partial(_build_enum, kind), _itself)
    try:
        return _SCALARS.get(kind)
    except TypeError:  # an annotation that is not hashable
        return None


def _plain_enum(value: Enum) -> object:
    """The value of the member if it is a text or a number, which survives a renaming; else its name, in an object."""
    if type(value.value) in (str, int) and type(value)(value.value) is value:
        return value.value
    return {"name": value.name}


def _build_enum(kind: type[Enum], data: Any) -> Enum:
    return kind[data["name"]] if isinstance(data, dict) else kind(data)


_NOT_FINITE = {text: float(text) for text in ("nan", "inf", "-inf")}


def plain_float(value: object) -> object:
    """NaN and the infinities as text, for a declared float; any other value as it is."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def build_float(data: Any) -> Any:
    """The inverse of ``plain_float``."""
    return _NOT_FINITE.get(data, data) if isinstance(data, str) else data


def is_float_text(value: object) -> bool:
    """Whether a text would be read as one of the floats that are written as text."""
    return isinstance(value, str) and value in _NOT_FINITE


# Annotations

_UNIONS = (Union, types.UnionType)
_SAYS_NOTHING = (None, type(None), Any, object)
_AWAITABLE = (collections.abc.Awaitable, collections.abc.Coroutine)
#: classes that JSON has
JSON = (str, int, float, bool, type(None), list, tuple, dict)
_WRAPPINGS = 20  # at most; a declaration that contains itself declares nothing

# A value of an abstract type is built as the container that JSON has for it.
CONTAINERS: Mapping[object, type] = {
    list: list,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    tuple: tuple,
    dict: dict,
    collections.abc.Mapping: dict,
    collections.abc.MutableMapping: dict,
    set: set,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
    frozenset: frozenset,
}


def meaning(declared: object) -> Any:
    """A declaration without ``Annotated``, ``NewType`` and the like; for ``X | None`` it is ``X``.

    None if it declares nothing about a value.
    """
    kind: Any = declared
    for _ in range(_WRAPPINGS):
        if isinstance(kind, type) and type(kind) is type:
            break
        origin = typing.get_origin(kind)
        if origin in _UNIONS:
            kinds = members(kind)
            if len(kinds) != 1:
                return kind
            kind = kinds[0]
        elif is_wrapped(kind):
            kind = _unwrapped(kind, origin)
        else:
            break
    if kind in _SAYS_NOTHING or isinstance(kind, typing.TypeVar | typing.ForwardRef | str):
        return None
    return kind


def is_wrapped(declared: object) -> bool:
    """Whether a declaration wraps another one, or is an alias of another one."""
    origin = typing.get_origin(declared)
    if origin is None:
        return isinstance(declared, typing.NewType) or type(declared).__name__ == "TypeAliasType"
    return origin is Annotated or getattr(origin, "_name", "") in ("Required", "NotRequired", "ReadOnly", "Final")


def _unwrapped(kind: Any, origin: object) -> object:
    if origin is not None:
        return typing.get_args(kind)[0]
    return kind.__supertype__ if isinstance(kind, typing.NewType) else kind.__value__


def origin_of(kind: Any) -> Any:
    """The class of a declaration such as ``list[int]``."""
    return typing.get_origin(kind) or kind


def is_union(kind: object) -> bool:
    """Whether a declaration offers several types."""
    return typing.get_origin(kind) in _UNIONS


def members(kind: object) -> list[Any]:
    """The types that a union offers, without None."""
    return [member for member in typing.get_args(kind) if member is not type(None)]


def is_plain(declared: object) -> bool:
    """Whether JSON has every value that the declaration allows, so that reading needs no declared type."""
    kind = meaning(declared)
    if kind is None or typing.get_origin(kind) is typing.Literal:
        return True
    origin, arguments = origin_of(kind), typing.get_args(kind)
    if origin in (list, dict, collections.abc.Sequence, collections.abc.Mapping):
        return all(map(is_plain, arguments))
    return origin in (str, int, float, bool)


def item_type(kind: object, at: int) -> object:
    """The declared type of a container's item: at a position of a tuple, of a list, of a mapping's values (1)."""
    container, arguments = CONTAINERS.get(origin_of(kind)), typing.get_args(kind)
    if container is None or not arguments:
        return None
    if container in (list, set, frozenset) or arguments[-1] is Ellipsis:
        return arguments[0]
    return arguments[at] if at < len(arguments) else None


def key_type(kind: object) -> Any:
    """The type of a mapping's keys, if a JSON object cannot have them; None for text, or if none is declared."""
    arguments = typing.get_args(kind)
    found = meaning(arguments[0]) if CONTAINERS.get(origin_of(kind)) is dict and arguments else None
    return None if found is str else found


def is_named_tuple(kind: object) -> TypeGuard[type[tuple[Any, ...]]]:
    """A class that ``typing.NamedTuple`` or ``collections.namedtuple`` made."""
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def is_typed_dict(kind: object) -> bool:
    """A class that ``TypedDict`` made, of ``typing`` or of ``typing_extensions``."""
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__total__")


def is_model(kind: object) -> bool:
    """A pydantic model class, recognised by its methods; pydantic is not imported here."""
    return isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


def is_secret(kind: object) -> bool:
    """Whether a class hides its value, as pydantic's ``SecretStr`` does; pydantic is not imported here.

    A class that has a JSON form of its own hides nothing, even if it has a method of that name.
    """
    if not (isinstance(kind, type) and callable(getattr(kind, "get_secret_value", None))):
        return False
    return not (is_model(kind) or dataclasses.is_dataclass(kind) or issubclass(kind, (Enum, *JSON)))


def masks(value: Any, dumped: Any) -> bool:
    """Whether the JSON form of a value has a mask, such as stars, instead of a secret.

    ``value``: what a model's ``model_dump()`` returns. ``dumped``: what ``model_dump(mode="json")`` returns.
    """
    if isinstance(value, (dict, Mapping)) and isinstance(dumped, dict):
        in_keys = value.keys() != dumped.keys() and _masks_any(value, dumped)
        return in_keys or _masks_any(value.values(), dumped.values())
    if isinstance(dumped, list) and isinstance(value, (list, collections.abc.Collection)):
        if isinstance(value, collections.abc.Set):
            # Its items may be in another order than in its JSON form.
            secrets = [item for item in value if is_secret(type(item))]
            if any(masks(item, written) for item in secrets for written in dumped):
                return True
        return _masks_any(value, dumped)
    return is_secret(type(value)) and _is_masked(value, dumped)


def _is_masked(secret: Any, dumped: Any) -> bool:
    """Whether the JSON form of a secret is its mask. An empty secret has none."""
    shown = str(secret)
    return bool(secret.get_secret_value()) and dumped in (shown, shown[2:-1])  # of bytes, it is ``b'**********'``


def _masks_any(values: Iterable[Any], dumped: Iterable[Any]) -> bool:
    # What is its own JSON form costs no call: a model may have many.
    return any(value is not written and masks(value, written) for value, written in zip(values, dumped, strict=False))


@lru_cache(maxsize=256)
def hints_of(kind: type) -> Mapping[str, Any]:
    """The declared types of a class's members; None for a type that cannot be resolved."""
    try:
        return typing.get_type_hints(kind)
    except Exception:
        return {name: _hint_of(kind, name) for base in kind.__mro__ for name in vars(base).get("__annotations__", ())}


def _hint_of(kind: type, name: str) -> object:
    for base in kind.__mro__:
        annotation = vars(base).get("__annotations__", {}).get(name)
        if annotation is not None:
            return _resolved(annotation, getattr(sys.modules.get(base.__module__), "__dict__", {}))
    return None


def _resolved(annotation: object, names: Mapping[str, Any]) -> object:
    if isinstance(annotation, type) and type(annotation) is type:
        return annotation
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, globalns=dict(names)).get("it")
    except Exception:
        return None


def declared_type(function: Callable[..., object]) -> object:
    """The return annotation of a function; None if it has none or it cannot be resolved; a class itself."""
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if isinstance(target, type):
        return target
    try:
        returns = getattr(target, "__annotations__", {}).get("return")
    except Exception:  # late annotations that cannot be evaluated
        return None
    if returns is None or returns is type(None):
        return None
    return _unawaited(_resolved(returns, getattr(_innermost(target), "__globals__", {})))


def _innermost(function: Any) -> Any:
    """The function below decorators: an annotation that is text has the names of that function's module."""
    for _ in range(_WRAPPINGS):
        function = getattr(function, "__wrapped__", function)
    return getattr(function, "__func__", function)


def _unawaited(returns: object) -> object:
    """The result type of an awaitable return annotation; any other annotation as it is."""
    if typing.get_origin(returns) in _AWAITABLE and typing.get_args(returns):
        returns = typing.get_args(returns)[-1]
    return None if returns is type(None) else returns


def unkeepable(declared: object, deep: bool = True) -> object:
    """The type in a declaration of which no value can be stored; None if some value may be stored.

    It is reported before an effect, so only certain cases count: an item of a container, but not an optional attribute
    of a class.
    """
    kind = meaning(declared)
    if kind is None or scalar_of(kind) is not None:
        return None
    if is_model(kind):
        return _unkeepable_secret(kind) if deep else None
    if is_union(kind):
        found = [unkeepable(member, deep) for member in members(kind)]
        return found[0] if all(found) else None
    origin = origin_of(kind)
    if not isinstance(origin, type):
        return None
    if dataclasses.is_dataclass(origin):
        return _unkeepable_field(origin) if deep else None
    if origin in CONTAINERS:
        items = (unkeepable(item, deep) for item in typing.get_args(kind) if item is not Ellipsis)
        return next((item for item in items if item is not None), None)
    return None if _is_json(origin) else kind


def _unkeepable_field(kind: type) -> object:
    for field in dataclasses.fields(kind):
        hint = hints_of(kind).get(field.name)
        optional = is_union(hint) or origin_of(meaning(hint)) in CONTAINERS  # None, or empty
        if field.init and not optional:
            found = unkeepable(hint, deep=False)
            if found is not None:
                return found
    return None


def _unkeepable_secret(model: Any) -> object:
    """The type of a required field that a pydantic model writes as a mask; None without one."""
    if writes_fields_itself(model) or getattr(model, "model_config", {}).get("json_encoders"):
        return None
    for field in getattr(model, "model_fields", {}).values():
        kind = origin_of(meaning(field.annotation))
        if is_secret(kind) and field.is_required() and not is_union(field.annotation) and not is_left_out(field):
            return kind
    return None


def is_left_out(field: Any) -> bool:
    """Whether a field of a pydantic model has a serializer of its own, or is excluded from the model's JSON form."""
    return bool(field.exclude) or any("Serializer" in type(part).__name__ for part in field.metadata)


def writes_fields_itself(model: Any) -> bool:
    """Whether a pydantic model has serializers of its own."""
    found = getattr(model, "__pydantic_decorators__", None)
    return bool(getattr(found, "field_serializers", None) or getattr(found, "model_serializers", None))


def _is_json(kind: type) -> bool:
    """Whether a class is one that JSON has, a subclass of one, or a base of one."""
    if issubclass(kind, JSON):
        return True
    try:
        return any(issubclass(known, kind) for known in JSON)
    except TypeError:  # a protocol that issubclass() does not take
        return True
