"""Shops that are each wrong in one way; ``fails`` names the statements that have to say so, and no others may.

Here: keys that are read wrong, and records that are looked up wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.conformance.shop import Answer, Request, Shop


class RunsMalformed(Shop):
    """Ignores what it cannot read, and runs unprotected."""

    fails = frozenset({"no-string", "strange-bytes", "two-lines", "empty", "length"})

    def malformed(self, field: str, request: Request) -> Answer:
        return self.run(request)


class OpaqueKeys(Shop):
    """Takes the field's bytes for the key, whatever they are."""

    fails = frozenset({"no-string", "strange-bytes", "two-lines", "empty", "bare-key", "parameters", "length"})

    def key_of(self, field: str) -> str | None:
        return field or None


class TakesLists(Shop):
    """Takes the first of several keys."""

    fails = frozenset({"two-lines"})

    def key_of(self, field: str) -> str | None:
        one, _, other = field.partition(",")
        return super().key_of(one if one == other.strip() else field)


class EmptyIsNone(Shop):
    """Takes an empty key for no key at all."""

    fails = frozenset({"empty"})

    def answer(self, request: Request, field: str | None) -> Answer:
        return self.run(request) if field in ("", '""') else super().answer(request, field)


class TakesStrangeBytes(Shop):
    """Drops the bytes that it does not like."""

    fails = frozenset({"strange-bytes"})

    def key_of(self, field: str) -> str | None:
        return super().key_of("".join(char for char in field if " " <= char <= "~"))


class IgnoresCase(Shop):
    """Keys differ by more than case."""

    fails = frozenset({"case-of-key"})

    def record_id(self, key: str, request: Request) -> Any:
        return super().record_id(key.lower(), request)


class ExactName(Shop):
    """Finds the field only where its name is written as usual."""

    fails = frozenset({"case-of-name"})

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "Idempotency-Key" not in environ["tests.names"]:
            environ.pop("HTTP_IDEMPOTENCY_KEY", None)
        return super().__call__(environ, start_response)


class BareIsAnotherKey(Shop):
    """A String, or anything else, each its own key."""

    fails = frozenset({"bare-key", "parameters"})

    def key_of(self, field: str) -> str | None:
        return None if super().key_of(field) is None else field


class RefusesStrings(Shop):
    """Takes bare keys alone."""

    fails = frozenset({"string-taken"})

    def key_of(self, field: str) -> str | None:
        return None if field.startswith('"') else super().key_of(field)


class NoParameters(Shop):
    """Refuses parameters."""

    fails = frozenset({"parameters"})

    def key_of(self, field: str) -> str | None:
        return None if ";" in field else super().key_of(field)


class AnyLength(Shop):
    """Takes keys of any length."""

    fails = frozenset({"length"})

    def key_of(self, field: str) -> str | None:
        return super().key_of('"long"') if len(field) > 256 else super().key_of(field)


class KeepsFailures(Shop):
    """Keeps a 5xx as the outcome."""

    fails = frozenset({"failure-not-kept"})

    def keeps(self, answer: Answer) -> bool:
        return True


class SharesKeys(Shop):
    """Forgets who is asking."""

    fails = frozenset({"callers-apart"})

    def record_id(self, key: str, request: Request) -> Any:
        return key

    def same_request(self, kept: Request, request: Request) -> bool:
        return kept.body == request.body


class TellsOnOthers(SharesKeys):
    """Refuses another caller's key, and so tells of it."""

    fails = frozenset({"callers-apart"})

    def same_request(self, kept: Request, request: Request) -> bool:
        return kept == request


class OneForAll(Shop):
    """Takes every request for the first one."""

    fails = frozenset({"reuse-meanwhile", "new-keys", "reuse-refused", "case-of-key"})
    slow_for = 1.0

    def record_id(self, key: str, request: Request) -> Any:
        return request.path, request.caller, request.body
