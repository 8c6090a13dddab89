"""Shops with one fault each. ``fails``: the statements that have to fail, and no others may.

The faults here: keys that are read wrong, and records that are looked up wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.conformance.shop import Request, Response, Shop


class RunsMalformed(Shop):
    """Ignores a malformed key, and runs unprotected."""

    fails = frozenset({"no-string", "strange-bytes", "two-lines", "empty", "length"})

    def malformed(self, header: str, request: Request) -> Response:
        return self.run(request)


class OpaqueKeys(Shop):
    """Accepts any bytes of the header as the key."""

    fails = frozenset({"no-string", "strange-bytes", "two-lines", "empty", "bare-key", "parameters", "length"})

    def key_of(self, header: str) -> str | None:
        return header or None


class TakesLists(Shop):
    """Accepts a list of keys, and uses the first one."""

    fails = frozenset({"two-lines"})

    def key_of(self, header: str) -> str | None:
        one, _, other = header.partition(",")
        return super().key_of(one if one == other.strip() else header)


class EmptyIsNone(Shop):
    """Treats an empty key as an absent key."""

    fails = frozenset({"empty"})

    def respond(self, request: Request, header: str | None) -> Response:
        return self.run(request) if header in ("", '""') else super().respond(request, header)


class TakesStrangeBytes(Shop):
    """Drops invalid bytes of the key."""

    fails = frozenset({"strange-bytes"})

    def key_of(self, header: str) -> str | None:
        return super().key_of("".join(char for char in header if " " <= char <= "~"))


class IgnoresCase(Shop):
    """Ignores the case of keys."""

    fails = frozenset({"case-of-key"})

    def record_id(self, key: str, request: Request) -> Any:
        return super().record_id(key.lower(), request)


class ExactName(Shop):
    """Finds the header only if its name has the usual case."""

    fails = frozenset({"case-of-name"})

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "Idempotency-Key" not in environ["tests.names"]:
            environ.pop("HTTP_IDEMPOTENCY_KEY", None)
        return super().__call__(environ, start_response)


class BareIsAnotherKey(Shop):
    """Treats a quoted key and a bare key as two keys."""

    fails = frozenset({"bare-key", "parameters"})

    def key_of(self, header: str) -> str | None:
        return None if super().key_of(header) is None else header


class RefusesStrings(Shop):
    """Accepts only bare keys."""

    fails = frozenset({"string-taken"})

    def key_of(self, header: str) -> str | None:
        return None if header.startswith('"') else super().key_of(header)


class NoParameters(Shop):
    """Refuses parameters."""

    fails = frozenset({"parameters"})

    def key_of(self, header: str) -> str | None:
        return None if ";" in header else super().key_of(header)


class AnyLength(Shop):
    """Accepts keys of any length."""

    fails = frozenset({"length"})

    def key_of(self, header: str) -> str | None:
        return super().key_of('"long"') if len(header) > 256 else super().key_of(header)


class KeepsFailures(Shop):
    """Stores a 5xx as the outcome."""

    fails = frozenset({"failure-not-kept"})

    def keeps(self, response: Response) -> bool:
        return True


class SharesKeys(Shop):
    """Ignores the caller."""

    fails = frozenset({"callers-apart"})

    def record_id(self, key: str, request: Request) -> Any:
        return key

    def same_request(self, kept: Request, request: Request) -> bool:
        return kept.body == request.body


class RevealsOtherCallers(SharesKeys):
    """Refuses another caller's key, and so reveals that it was used."""

    fails = frozenset({"callers-apart"})

    def same_request(self, kept: Request, request: Request) -> bool:
        return kept == request


class OneForAll(Shop):
    """Treats every request with the key as the first one."""

    fails = frozenset({"reuse-meanwhile", "new-keys", "reuse-refused", "case-of-key"})
    slow_for = 1.0

    def record_id(self, key: str, request: Request) -> Any:
        return request.path, request.caller, request.body
