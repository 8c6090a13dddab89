"""Stage values as JSON and back. Types that JSON lacks are written and read by declared type.

A value always goes through its JSON form, on the first attempt too, so that a view gets the same value whether a stage
has just run or was recorded by an attempt that died. A value that would be read differently is refused when it is
saved. Types are never looked up by a stored name, except among the members of a declared union.

A payload of the kind ``VALUE`` has only JSON values, dataclasses and pydantic models. In one of the kind ``TYPED`` the
declared type also says what a text, a number or an array stands for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from open_idempotency._core.stored_response import StageKind
from open_idempotency._stages.annotations import (
    CONTAINERS,
    Scalar,
    build_float,
    hints_of,
    is_float_text,
    is_left_out,
    is_model,
    is_named_tuple,
    is_plain,
    is_secret,
    is_typed_dict,
    is_union,
    is_wrapped,
    item_type,
    key_type,
    masks,
    meaning,
    members,
    origin_of,
    plain_float,
    scalar_of,
    unkeepable,
    writes_fields_itself,
)
from open_idempotency.exceptions import StageValueError

_SCALARS = (str, int, float, bool, type(None))
# Marks an object that is not part of the value. The mark holds the type in a union, an empty text for plain JSON that
# would be read as another type, or _FIELDS for a model whose own JSON would be read differently.
_MARK, _HELD = "~", "value"
_FIELDS = "fields"

_INSTEAD = "save a text, a number or an id"
_DEFAULT = "give default= or reconcile=, which say what later attempts get"
#: what to do with a value that hides a secret
UNMASKED = "return a reference to the secret, or get_secret_value() together with encryption="


class _Refused(TypeError):
    """Why a value cannot be stored: the name of a type, and a cure. Neither contains anything of the value."""

    def __init__(self, message: str, kind: str, cure: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.cure = cure


class _Masked(_Refused):
    """The value hides a secret, so its JSON form has a mask instead."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"{kind} hides a secret, so a mask would be stored instead", kind, UNMASKED)


class HiddenSecret(StageValueError):
    """A value, or a declared type, whose JSON form has a mask instead of a secret."""


def check(declared: object) -> None:
    """Raise ``StageValueError`` for a declaration of which no value can be stored. To be called before an effect."""
    kind = unkeepable(declared)
    if kind is None:
        return
    name = _name(kind)
    hidden = is_secret(kind)
    instead = UNMASKED if hidden else "return a text, a number or an id of it"
    cure = f"{instead}, pass returns= if it returns something else, or {_DEFAULT}"
    refusal = HiddenSecret if hidden else StageValueError
    raise refusal(f"no value of the declared type {name} can be stored; {cure}", name, cure)


def encode(value: object, declared: object, max_bytes: int) -> tuple[StageKind, bytes]:
    """The kind and the JSON text of a stage value. ``declared``: its type, or None if none was given.

    Raises only ``StageValueError``: the value is not JSON, its type is not declared, it could not be read back, or it
    has more than ``max_bytes``.
    """
    coder = _Coder()
    try:
        text = json.dumps(coder.plain(value, declared), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        payload = text.encode()
    except Exception as error:  # a class of the application may raise anything, and the effect has happened
        refused = error if isinstance(error, _Refused) else _Refused("", _name(type(value)), _DEFAULT)
        masked = isinstance(error, _Masked)
        cure = refused.cure if masked else f"{_INSTEAD}, or {refused.cure}"
        said = f"a stage value must be JSON, or of a declared type: {error}; {cure}"
        raise (HiddenSecret if masked else StageValueError)(said, refused.kind, cure) from error
    if len(payload) > max_bytes:
        cure = "save an id, and store the value in your database, or raise max_stage_bytes"
        raise StageValueError(
            f"a stage value of {len(payload)} bytes is over max_stage_bytes ({max_bytes}); {cure}",
            _name(type(value)),
            cure,
        )
    return StageKind.TYPED if coder.typed else StageKind.VALUE, payload


class _Coder:
    """Converts one value to JSON. ``typed``: whether its declaration is needed to read the JSON."""

    __slots__ = ("typed",)

    def __init__(self) -> None:
        self.typed = False

    def plain(self, value: Any, declared: object) -> object:
        """The JSON form of a value. Raises ``_Refused``, and whatever an application's class raises."""
        if value is None:
            return None
        kind = meaning(declared)
        self.typed = self.typed or (is_wrapped(declared) and not is_plain(kind))
        if is_union(kind):
            return self._in_union(value, kind)
        scalar = scalar_of(origin_of(kind))
        if scalar is not None:
            return self._scalar(value, kind, scalar)
        if is_model(type(value)):
            return self._model(value, kind)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._dataclass(value, kind)
        if isinstance(value, list | tuple):
            return self._sequence(value, kind)
        if isinstance(value, dict):
            return self._mapping(value, kind)
        if isinstance(value, set | frozenset):
            return self._set(value, kind)
        if not isinstance(value, _SCALARS):
            _refuse(value, kind)
        return self._float(value) if origin_of(kind) is float else value

    def _escaped(self, value: Any) -> object:
        """Plain JSON that would otherwise be read as another type."""
        self.typed = True
        return {_MARK: "", _HELD: self.plain(value, None)}

    def _float(self, value: Any) -> object:
        if is_float_text(value):
            return self._escaped(value)
        written = plain_float(value)
        self.typed = self.typed or written is not value
        return written

    def _scalar(self, value: Any, kind: Any, scalar: Scalar) -> object:
        if not isinstance(value, kind):
            return self._escaped(value)
        self.typed = True
        written = scalar.plain(value)
        if scalar.exact(scalar.build(written)) != scalar.exact(value):
            raise _changed(value)
        return written

    def _sequence(self, value: Any, kind: Any) -> object:
        if CONTAINERS.get(origin_of(kind)) is dict:
            _refuse(value, kind)
        if is_named_tuple(kind):
            self.typed = True
            hints = hints_of(kind)
            return [self.plain(item, hints.get(name)) for item, name in zip(value, _field_names(kind), strict=True)]
        return [self.plain(item, item_type(kind, at)) for at, item in enumerate(value)]

    def _set(self, value: Any, kind: Any) -> object:
        if CONTAINERS.get(origin_of(kind)) not in (set, frozenset):
            _refuse(value, kind)
        self.typed = True
        return [self.plain(item, item_type(kind, 0)) for item in value]

    def _mapping(self, value: dict[Any, Any], kind: Any) -> object:
        keys = key_type(kind)
        if keys is not None:
            self.typed = True
            return [[self.plain(key, keys), self.plain(item, item_type(kind, 1))] for key, item in value.items()]
        for key in value:
            if not isinstance(key, str):
                name = _name(type(key))
                cure = f"annotate the function's return type as dict[{name}, ...], or pass returns="
                raise _Refused(f"a member name of type {name} is not a string", f"dict[{name}, ...]", cure)
        if is_typed_dict(kind):
            hints = hints_of(kind)
            self.typed = self.typed or not all(map(is_plain, hints.values()))
            return {key: self.plain(item, hints.get(key)) for key, item in value.items()}
        return {key: self.plain(item, item_type(kind, 1)) for key, item in value.items()}

    def _dataclass(self, value: Any, kind: Any) -> object:
        made = type(value)
        if made is not origin_of(kind):
            _refuse(value, kind)
        hints = hints_of(made)
        return {f.name: self.plain(getattr(value, f.name), hints.get(f.name)) for f in dataclasses.fields(made)}

    def _model(self, value: Any, kind: Any) -> object:
        made: Any = type(value)
        if made not in (kind, origin_of(kind)):
            _refuse(value, kind)
        try:
            dumped: object = value.model_dump(mode="json", by_alias=True, round_trip=True)
            read = _validated(made, dumped)
        except Exception:
            return self._fields(value)
        try:
            in_python: object = value.model_dump(by_alias=True, round_trip=True)
        except Exception:  # it has a JSON form only, as a set of models has
            in_python = dumped
        if masks(in_python, dumped):
            raise _Masked(_name(made))
        if _same_fields(read, value):
            return dumped
        try:
            return self._fields(value)
        except _Masked:
            if in_python is dumped:
                raise
            return dumped
        except Exception:  # it may leave out fields on purpose, which the first attempt sees too
            return dumped

    def _fields(self, value: Any) -> object:
        """A model by its fields, if its own JSON loses their types: bytes, NaN, enums of tuples ..."""
        made = type(value)
        fields: Mapping[str, Any] = made.model_fields
        if (
            getattr(value, "__pydantic_extra__", None)
            or any(map(is_left_out, fields.values()))
            or writes_fields_itself(made)
        ):
            raise _changed(value)
        within = {name: self.plain(getattr(value, name), field.annotation) for name, field in fields.items()}
        self.typed = True
        return {_MARK: _FIELDS, _HELD: within, "set": sorted(value.model_fields_set)}

    def _in_union(self, value: Any, union: object) -> object:
        kinds = members(union)
        # Only JSON objects need a mark of their type; other values are never read as another type.
        plain = type(value) in _SCALARS and (type(value) is not float or math.isfinite(value))
        if plain or (all(map(is_plain, kinds)) and not isinstance(value, float) and not _is_marked(value)):
            return self.plain(value, None)
        for kind in sorted(kinds, key=lambda kind: type(value) is not origin_of(kind)):
            label = _label(kind)
            if not _may_be(value, kind) or [_label(other) for other in kinds].count(label) > 1:
                continue
            written = _written_as(value, kind)
            if written is not None:
                self.typed = True
                return {_MARK: label, _HELD: written}
        return self._escaped(value) if isinstance(value, dict) else self.plain(value, None)


def _written_as(value: object, kind: Any) -> object:
    """A value, which is not None, as one of the types of a union; None if another type may fit."""
    try:
        written = _Coder().plain(value, kind)
        _build(json.loads(json.dumps(written, allow_nan=False)), kind, typed=True)
    except _Masked:
        raise
    except Exception:
        return None
    return written


def _refuse(value: object, declared: object) -> NoReturn:
    kind = type(value)
    name = _name(kind)
    if is_secret(kind):
        raise _Masked(name)
    if not _can_be_declared(kind):
        raise _Refused(f"{name} cannot be written as JSON", name, _DEFAULT)
    if declared is not None:
        said = f"{name} needs a declared type to be read back, and {_name(declared)} does not say it"
    else:
        said = f"{name} needs a declared type to be read back"
    raise _Refused(said, name, f"annotate the function's return type, or pass returns={name}")


def _can_be_declared(kind: type) -> bool:
    return scalar_of(kind) is not None or is_model(kind) or dataclasses.is_dataclass(kind) or kind in CONTAINERS


def _changed(value: object) -> _Refused:
    name = _name(type(value))
    return _Refused(f"{name} would not come back as it was", name, _DEFAULT)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def _label(kind: Any) -> str:
    """The name of a member of a union in a record."""
    return kind.__qualname__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _may_be(value: object, declared: object) -> bool:
    kind: Any = meaning(declared)
    origin = origin_of(kind)
    container = CONTAINERS.get(origin)
    if container is not None:
        return isinstance(value, container)
    return isinstance(origin, type) and isinstance(value, origin)


def _is_marked(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {_MARK, _HELD}


def _field_names(kind: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = kind._fields
    return names


def _same_fields(made: Any, value: Any) -> bool:
    names: Mapping[str, Any] | None = getattr(type(value), "model_fields", None)
    try:
        return names is None or all(getattr(made, name) == getattr(value, name) for name in names)
    except Exception:  # an application's class
        return False


def _validated(kind: Any, data: object) -> Any:
    """The model read from JSON text: only so it reads its own forms, such as base64 bytes or a strict date."""
    validate: Callable[[str], Any] | None = getattr(kind, "model_validate_json", None)
    return kind.model_validate(data) if validate is None else validate(json.dumps(data, allow_nan=False))


# Back


def decode(kind: StageKind, payload: bytes, declared: object) -> Any:
    """The value in a JSON text, built as the declared type. Raises ``StageValueError``."""
    try:
        return _build(json.loads(payload), declared, kind is StageKind.TYPED)
    except Exception as error:  # a class of the application may raise anything
        raise StageValueError(f"a saved stage value does not fit {declared!r}: {error}") from error


def _build(value: Any, declared: Any, typed: bool) -> Any:
    kind = meaning(declared)
    if kind is None or value is None:
        return value
    origin = origin_of(kind)
    if is_model(kind):
        return _build_model(value, kind, typed)
    if typed and not is_union(kind):
        scalar = scalar_of(origin)
        if scalar is not None or origin is float:
            if _is_marked(value):
                return value[_HELD]
            return build_float(value) if scalar is None else scalar.build(value)
    if isinstance(value, _SCALARS):
        return value
    if is_union(kind):
        return _build_union(value, kind, typed)
    if typed and is_named_tuple(kind):
        return _build_named_tuple(value, kind)
    if is_typed_dict(kind):
        return {name: _build(item, hints_of(kind).get(name), typed) for name, item in value.items()}
    container = CONTAINERS.get(origin)
    if container is not None:
        return _build_container(value, container, kind, typed)
    if isinstance(origin, type) and dataclasses.is_dataclass(origin):
        return _build_dataclass(value, origin, typed)
    return value


def _build_named_tuple(value: Any, kind: Any) -> Any:
    hints = hints_of(kind)
    # A field that the recording version of the class did not have takes its default.
    items = zip(value, _field_names(kind), strict=False)
    return kind(*(_build(item, hints.get(name), typed=True) for item, name in items))


def _build_model(value: Any, kind: Any, typed: bool) -> Any:
    if not (typed and isinstance(value, dict) and value.get(_MARK) == _FIELDS):
        return _validated(kind, value)
    fields = kind.model_fields
    # A field that this version of the class no longer has is left out; a new one takes its default.
    within = {
        name: _build(item, fields[name].annotation, typed) for name, item in value[_HELD].items() if name in fields
    }
    return kind.model_construct(_fields_set={*value["set"]}, **within)


def _build_union(value: Any, union: Any, typed: bool) -> Any:
    kinds = members(union)
    if typed and _is_marked(value):
        if not value[_MARK]:
            return value[_HELD]
        for kind in kinds:
            if _label(kind) == value[_MARK]:
                return _build(value[_HELD], kind, typed)
        raise TypeError("it is of a type that is not declared any more")
    if isinstance(value, dict) and any(is_model(kind) or dataclasses.is_dataclass(kind) for kind in kinds):
        raise TypeError("the types of a union cannot be distinguished in a stored value; declare one type")
    return value


def _build_container(value: Any, container: type, kind: Any, typed: bool) -> Any:
    if container in (set, frozenset):
        return container(_build(item, item_type(kind, 0), typed) for item in value) if typed else value
    keys = key_type(kind)
    if typed and keys is not None and isinstance(value, list):
        return {_build(key, keys, typed): _build(item, item_type(kind, 1), typed) for key, item in value}
    if isinstance(value, dict) is not (container is dict):
        raise TypeError(f"expected a {container.__name__}, got a {type(value).__name__}")
    arguments = typing.get_args(kind)
    if not arguments:
        return container(value)
    if container is dict:
        return {key: _build(item, arguments[1], typed) for key, item in value.items()}
    if container is list or arguments[-1] is Ellipsis:
        return container(_build(item, arguments[0], typed) for item in value)
    return tuple(_build(item, part, typed) for item, part in zip(value, arguments, strict=True))


def _build_dataclass(value: Any, declared: type, typed: bool) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"expected the members of {declared.__name__}, got a {type(value).__name__}")
    hints = hints_of(declared)
    # A field that the recording version of the class did not have takes its default.
    fields = (f for f in dataclasses.fields(declared) if f.init and f.name in value)
    return declared(**{f.name: _build(value[f.name], hints.get(f.name), typed) for f in fields})
