"""Values that JSON does not have, as JSON: dates and times, decimals, UUIDs, bytes, enums. Read by declared type.

What comes back equals what was there, with its digits, its microseconds, its zone and its fold.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

_MICROSECOND = timedelta(microseconds=1)


class Scalar(NamedTuple):
    """How the values of one type are written and read. ``exact`` is what two equal values have in common."""

    plain: Callable[[Any], object]
    build: Callable[[Any], Any]
    exact: Callable[[Any], object]


def _plain_moment(value: datetime | time) -> object:
    """ISO 8601 text; with a zone or a fold, which it cannot say, an object."""
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
    # Moments of two zones are never equal in the hour that a clock is set back.
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
    """How values of this declared type are written; None for a type that is none of these."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return Scalar(_plain_enum, partial(_build_enum, kind), _itself)
    try:
        return _SCALARS.get(kind)
    except TypeError:  # an annotation that has no hash
        return None


def _plain_enum(value: Enum) -> object:
    """Its value, as its text or number outlives a renaming; else its name, in an object."""
    if type(value.value) in (str, int) and type(value)(value.value) is value:
        return value.value
    return {"name": value.name}


def _build_enum(kind: type[Enum], data: Any) -> Enum:
    return kind[data["name"]] if isinstance(data, dict) else kind(data)


_NOT_FINITE = {text: float(text) for text in ("nan", "inf", "-inf")}


def plain_float(value: object) -> object:
    """NaN and the infinities as text, where a float is declared; anything else as it is."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def build_float(data: Any) -> Any:
    """Contrary of ``plain_float``."""
    return _NOT_FINITE.get(data, data) if isinstance(data, str) else data


def is_float_text(value: object) -> bool:
    """Whether a text would be taken for one of the floats that are written as text."""
    return isinstance(value, str) and value in _NOT_FINITE
