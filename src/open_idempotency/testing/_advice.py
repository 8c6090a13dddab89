"""The messages of a kit: why a request is not idempotent, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from open_idempotency._core.models import Finished, Leased, Mismatch
from open_idempotency.testing._script import Crash, Seen, StageUsed

NO_EFFECT = (
    "effects=: {what} got {status}, and effects= saw no change. It looks at something else, or it counts effects that "
    "this request does not have; leave effects= out if the request has no effect of its own"
)
NO_MEASURE = (
    "{what}: this endpoint has no stages, so a retry after a crash runs all of it again, and only effects= shows "
    "whether that repeats something. Pass effects= (a function that counts, or a list that the application appends "
    "to), or crashes=False to try no crashes"
)
NEVER_CAME = (
    "{what}: in the scenario {scenario!r} the request never reached stage {name!r}, which the first one reached. "
    "Requests take different paths through the endpoint; give reset= to bring the application back to the same state, "
    "or let a function send a request that is new for each key"
)
SWALLOWED = (
    "{what}: in the scenario {scenario!r} the endpoint went on after its worker was killed. A bare except:, an except "
    "BaseException, or a return in a finally: block has caught the exception that ends it. A killed worker runs none "
    "of that; catch Exception instead"
)
OTHER_STATUS = (
    "a retry gets what the first request would have got. If the endpoint refuses what exists already, look it up in a "
    "stage, or by a stage's value. If only the state of the test is in the way, give reset=, or let a function send a "
    "request that is new for each key"
)
TOO_LITTLE = (
    "less has happened than by one plain request. If only the state of the test is in the way (a row with this name "
    "exists already), give reset=, or let a function send a request that is new for each key. Otherwise a stage was "
    "recorded whose effect was rolled back: pass its transaction as tx="
)
NOT_DETERMINED = (
    "what a response says comes from stages, so that each attempt makes the same one. An id or a time that is made "
    "outside of a stage is another one in the next attempt, and so is all that was sent elsewhere with it. Make it in "
    "a stage, as in idem.run('order-id', new_id), or pass ignore=(name, ...) if it means nothing"
)
UNPROTECTED = {
    "nowhere": (
        "{what} got {status}, and no application with the idempotency middleware was called. Install it where the test "
        "makes its application: app.add_middleware(IdempotencyMiddleware, ...) in Starlette and FastAPI, MIDDLEWARE in "
        "Django, Idempotency(app, ...) in Flask"
    ),
    "off": (
        "{what} got {status} without protection: enabled=False switches idempotency off. Leave it out in tests that "
        "take this kit; it needs no server"
    ),
    "refused": (
        "{what} was refused before its key was claimed: {status}, {body}. Name a request that the application accepts; "
        "if it wants keys of another form, pass key=, a function that makes one; if it wants a client that is logged "
        "in, log it in first"
    ),
    "not covered": (
        "{what} got {status} and ran without protection, so it is not idempotent. Its route is exempt or not marked "
        '(cover="marked"), its method is not covered (POST and PATCH, unless methods= says more), its key is in '
        "another header (pass header=), or the middleware is not in this application"
    ),
}

_OUTSIDE = (
    "the view did not run again, so the effect is outside of what is protected: in a middleware, in a dependency or "
    "decorator that runs before the claim, or in code after the response. Move it into the view"
)
_NOT_STORED = (
    "the first response was not stored, so the retry ran again. idem.discard(), store= or its status says so (stored "
    "are 2xx, 3xx and most 4xx). Let the view store the outcome of what it has done: idem.keep()"
)
_OTHER_CALLER = (
    "the two requests count as those of different callers, so the key means two things. What names the caller (scope=, "
    "user=, the session, the Authorization header) has to be the same for a retry"
)
_OTHER_REQUEST = (
    "the two requests have different fingerprints, so the second one is refused. The same request has to be sent, "
    "byte for byte; see fingerprint= if the client cannot do that (a multipart boundary differs each time)"
)


def where(crash: Crash, used: StageUsed | None) -> str:
    """Where a worker was killed."""
    if crash.stage is None or used is None:
        return "when the handler had run, before its response was recorded"
    name = f"stage {crash.stage!r}" + (f" (use {used.nth + 1})" if used.nth else "")
    if crash.when == "before":
        return f"before {name} began"
    if crash.when == "unrecorded":
        return f"after the effect of {name}, before the effect was recorded"
    return f"when {name} was on record"


def repeated(claims: Sequence[tuple[bytes, Any]], again: Seen) -> str:
    """Why a request that came after the first one had an effect."""
    if again.claims and isinstance(again.claims[-1][1], Finished):
        return _OUTSIDE
    return _why_not_replayed(claims) or _OUTSIDE


def other_response(claims: Sequence[tuple[bytes, Any]], again: Seen) -> str:
    """Why a retry got another response."""
    if again.claims and isinstance(again.claims[-1][1], Finished):
        return (
            "the stored response was replayed, and a layer outside of the idempotency middleware has changed it or the "
            "first one. Put that layer inside, or pass ignore=(name, ...) for members of JSON that mean nothing"
        )
    return _why_not_replayed(claims) or _NOT_STORED


def _why_not_replayed(claims: Sequence[tuple[bytes, Any]]) -> str | None:
    if len({record for record, _ in claims}) > 1:
        return _OTHER_CALLER
    if any(isinstance(result, Mismatch) for _, result in claims):
        return _OTHER_REQUEST
    return _NOT_STORED if sum(isinstance(result, Leased) for _, result in claims) > 1 else None


def at_once(seen: Seen) -> str:
    """Why a duplicate was not refused or delayed."""
    return _why_not_replayed(seen.claims[:2]) or _OUTSIDE


def killed(crash: Crash, stages: Sequence[StageUsed]) -> str:
    """Why an effect happened twice around a crash."""
    if crash.stage is None and crash.when == "after":
        return _OUTSIDE
    if crash.stage is None:
        after = f"after the last stage ({stages[-1].name!r}) " if stages else ""
        return (
            f"an effect {after}is in no stage, so the next attempt repeats it. Wrap it, as in idem.run('name', "
            "function, ...), or commit it with the response by idem.atomic(tx)"
        )
    name = repr(crash.stage)
    if crash.when == "before":
        return (
            f"code before stage {name} has an effect and is in no stage, so the next attempt repeats it. Wrap it in a "
            "stage of its own: idem.run('name', function, ...)"
        )
    if crash.when == "unrecorded":
        return (
            f"stage {name} ran again, since it was unknown that its effect had happened. Give the other system a key "
            f"by which it recognises the second call (idem.key_for({name})), and let the fake of the test recognise it "
            "too; or put the stage into the transaction of its rows (tx=); or query the other system (reconcile=). If "
            "that window is acceptable here, pass in_doubt=False"
        )
    return (
        f"stage {name} was on record, and an effect happened again. Code before it is in no stage; or the stage has a "
        "key= that is another one in each attempt, so that it is not found again"
    )
