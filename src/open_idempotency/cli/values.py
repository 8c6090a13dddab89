"""Parsers of arguments: durations, numbers, JSON. Each raises ``argparse.ArgumentTypeError``."""

from __future__ import annotations

import argparse
import json
import math
import re
from typing import Any

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_is_duration = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)").fullmatch


def seconds(text: str) -> float:
    """A duration such as ``90``, ``5m``, ``2h`` or ``1d``, in seconds."""
    found = _is_duration(text.strip().lower())
    if found is None or not math.isfinite(float(found[1])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 90, 90s, 5m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def json_value(text: str) -> Any:
    """A JSON value in a list, since None would mean that the option is missing."""
    try:
        return [json.loads(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not JSON ({error}); a text needs quotes, as in --found '\"ch_123\"'"
        ) from error
