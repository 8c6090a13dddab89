"""From the arguments of a command to a record: by a record id, or by a client's key and its caller."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from open_idempotency import operations
from open_idempotency.backend import Backend, Record
from open_idempotency.cli.context import Context
from open_idempotency.operations import RecordUnknown
from open_idempotency.policy import IdempotencyPolicy

_HINT = (
    "for a client's key, name the application (--app module:attribute), or its caller (--user, --authorization or "
    "--scope)"
)
_WHOLE = 64
_FIELDS = ("user", "tenant", "authorization", "scope", "host", "application", "method", "path")


def add_caller(parser: argparse.ArgumentParser) -> None:
    """Add the options that say whose key it is. Each is needed only where the application's policy depends on it."""
    who = parser.add_argument_group("whose key it is, where KEY is a client's key")
    who.add_argument("--user", metavar="ID", help="the user's id, as the framework has it")
    who.add_argument(
        "--authorization", metavar="VALUE", help="the Authorization header; - reads it from standard input"
    )
    who.add_argument("--scope", metavar="NAME", help="what the application's scope= returns")
    who.add_argument("--session", metavar="NAME=ID", type=_entry, action="append", help="an entry of the session")
    who.add_argument("--tenant", metavar="NAME", help="the tenant")
    who.add_argument("--host", metavar="HOST", help="the Host header, with scope_by_host")
    who.add_argument("--application", metavar="NAME", help="application= of the policy")
    who.add_argument("--method", metavar="METHOD", help="of the request, with scope_by_route or rules")
    who.add_argument("--path", metavar="PATH", help="of the request, with scope_by_route or rules")


def _entry(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no entry of a session; write name=id")
    return name, value


def caller_of(context: Context) -> dict[str, Any]:
    """The caller that the options name, as keyword arguments of ``operations.Who``."""
    options = context.options
    who = {name: value for name in _FIELDS if (value := getattr(options, name)) is not None}
    if options.session:
        who["session"] = dict(options.session)
    if who.get("authorization") == "-":
        who["authorization"] = sys.stdin.readline().rstrip("\r\n")
    return who


def application_of(context: Context, who: dict[str, Any]) -> object:
    """The application; without one a default policy, for which a user or a scope is enough."""
    if context.application is not None:
        return context.application.of
    given: str | None = who.get("scope")
    return IdempotencyPolicy() if given is None else IdempotencyPolicy(scope=lambda request: given)


def find(context: Context, backend: Backend) -> Record:
    """The record that a command names.

    Without a caller, a text that may be a record id is tried as one first. Raises what ``operations.find_record`` and
    ``operations.find_key`` raise.
    """
    text: str = context.options.record
    who = caller_of(context)
    by_id = operations.is_record_id(text.strip().lower())
    if context.application is None and not who:
        if not by_id:
            raise RecordUnknown(f"{text[:80]!r} is no record id (4 to 64 hexadecimal digits); {_HINT}")
        return operations.find_record(backend, text)
    if by_id and (not who or len(text.strip()) == _WHOLE):
        try:
            return operations.find_record(backend, text)
        except RecordUnknown as error:
            if len(text.strip()) == _WHOLE:
                raise
            return _by_key(context, backend, text, who, f"{error}; and as a client's key: ")
    return _by_key(context, backend, text, who)


def _by_key(context: Context, backend: Backend, text: str, who: dict[str, Any], before: str = "") -> Record:
    """The record of a client's key. ``before``: the beginning of the error message."""
    try:
        return operations.find_key(backend, application_of(context, who), text, **who)
    except RecordUnknown as error:
        raise RecordUnknown(f"{before}{error}") from error
