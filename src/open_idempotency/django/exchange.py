"""One covered request of a Django project: its body, its claim, its view's context, and its response.

The order is ``begin`` (in the view hook), then ``conclude`` or ``abort`` (around the chain). Each has a sync and an
async form, which differ only in the performer that carries out the core's steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.http.response import HttpResponse, HttpResponseBase

from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.caller_changes import Change, follow, read_change
from open_idempotency._core.commands import Steps
from open_idempotency._core.models import Identity
from open_idempotency._core.models import Response as CoreResponse
from open_idempotency._core.settlement import Fate
from open_idempotency._core.stored_response import REPLAYED
from open_idempotency._engine.bodies import RequestBody
from open_idempotency._engine.engine import Engine, new_owner, running
from open_idempotency._engine.thread_calls import GRACE, InView, Patience
from open_idempotency._routes.coverage import Route, reveals_a_record
from open_idempotency._runtime import processes
from open_idempotency._wsgi import BodyIncomplete, BoundIterable, LiveBody
from open_idempotency.django import identity, private, views
from open_idempotency.django.identity import SessionTrace
from open_idempotency.django.messages import (
    Recording,
    find_key,
    is_untouched,
    make_response,
    mark_unrecorded,
    note_of,
    read_request,
    response_headers,
    send_back,
    stand_in,
)
from open_idempotency.django.streaming import AsyncLiveBody, BoundAsyncIterator, Protection

R = TypeVar("R", bound=HttpResponseBase)


class Exchange:
    """The state of a request between the middleware's hooks."""

    __slots__ = (
        "_core_response", "_made", "_made_headers", "_policy", "_protection", "_recording", "_request", "_session",
        "engine", "raised",
    )  # fmt: skip

    def __init__(self, engine: Engine, request: HttpRequest) -> None:
        self.engine = engine
        self._request = request
        self._policy = engine.policy
        self._recording: Recording | None = None
        self._protection: Protection | None = None
        self._session = SessionTrace(request)
        self._core_response: CoreResponse | None = None
        # the Django response made of it, and its headers at that time
        self._made: HttpResponse
        self._made_headers: list[tuple[str, str]]
        #: the view raised; Django makes a response of the error
        self.raised = False

    @property
    def attempt(self) -> Attempt | None:
        """The attempt that runs; None until it is admitted."""
        return None if self._protection is None else self._protection.attempt

    def patience(self) -> Patience | None:
        """How long a cancellation waits, if the view is in a thread or has just left one; else None."""
        threads = None if self.attempt is None else self.attempt.threads
        return Patience(threads) if threads is not None and threads.ran_within(GRACE) else None

    # Before the view

    def record(self) -> None:
        """Record the body from here on: code that reads it before the claim consumes the stream."""
        self._recording = Recording(self._request, self._policy)

    def begin(self, route: Route | None, view: Callable[..., Any]) -> HttpResponseBase | None:
        """Claim the request and bind its context. Returns the response to send instead of running the view, or None."""
        intake = self._open(route, self._identify, self._receive)
        if intake is None:
            return None
        try:
            admission = self.engine.sync.run(admit(intake, self._policy))
        except BodyIncomplete as error:
            return HttpResponse(status=error.status)
        finally:
            self._give_back()
        if isinstance(admission, Attempt) and admission.passes:
            self._let_through(admission)
            return None
        core = admission if isinstance(admission, CoreResponse) else self._started(self._protect(admission).begin())
        if core is None:
            return None
        refusal = views.refusal(self._request, view) if reveals_a_record(core) else None
        return self._respond(core) if refusal is None else self._refused(refusal)

    async def abegin(self, route: Route | None, view: Callable[..., Any]) -> HttpResponseBase | None:
        """``begin``, awaited."""
        intake = self._open(route, self._aidentify, self._areceive)
        if intake is None:
            return None
        try:
            admission = await self.engine.aio.run(admit(intake, self._policy))
        except BodyIncomplete as error:
            return HttpResponse(status=error.status)
        finally:
            self._give_back()
        if isinstance(admission, Attempt) and admission.passes:
            self._let_through(admission)
            return None
        if isinstance(admission, CoreResponse):
            core: CoreResponse | None = admission
        else:
            if not iscoroutinefunction(view):
                admission.run_in_threads(InView())
            core = self._started(await self._protect(admission).abegin())
        if core is None:
            return None
        refusal = await views.arefusal(self._request, view) if reveals_a_record(core) else None
        return self._respond(core) if refusal is None else self._refused(refusal)

    def _open(self, route: Route | None, identify: Callable[[], Any], receive: Callable[[], Any]) -> Intake | None:
        """The intake of a covered request; None if the view is not covered or the request runs without a key."""
        request = self._request
        if route is None or request.method not in route.policy.methods:
            self._stop_recording()
            return None
        self._policy = route.policy
        key_headers = find_key(request, route.environ_names)
        if not key_headers and not route.always:
            self._stop_recording()
            running.set((Attempt(route.policy), self.engine))
            return None
        return Intake(
            read_request(request),
            key_headers,
            new_owner(),
            identify,
            receive,
            self.engine.advice,
            self._session,
            renders=_renders,
            holder=processes.name(),
        )

    def _stop_recording(self) -> None:
        if self._recording is not None:
            self._recording.stop()
            self._recording = None

    def _identify(self) -> Identity | None:
        # With a scope= callable the user is not needed, so nothing is loaded for it.
        if callable(self._policy.scope):
            return None
        if self._policy.scope is not None:
            return Identity(None, identity.tenant(self._request))
        return identity.identify(self._request, self._lend)

    async def _aidentify(self) -> Identity | None:
        if callable(self._policy.scope):
            return None
        if self._policy.scope is not None:
            return Identity(None, await identity.atenant(self._request))
        return await identity.aidentify(self._request, self._lend)

    def _lend(self) -> AbstractContextManager[Any]:
        return self._ensure_recording().lend()

    def _ensure_recording(self) -> Recording:
        if self._recording is None:
            self.record()
        assert self._recording is not None
        return self._recording

    def _receive(self) -> RequestBody:
        steps = self._ensure_recording().whole(self._policy)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                body: RequestBody = done.value
                return body

    async def _areceive(self) -> RequestBody:
        # ASGIHandler has received the body already. This reads its file, and lets other tasks run in between.
        steps = self._ensure_recording().whole(self._policy)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                body: RequestBody = done.value
                return body
            await asyncio.sleep(0)

    def _give_back(self) -> None:
        if self._recording is not None:
            self._recording.give_back()

    def _let_through(self, attempt: Attempt) -> None:
        """Run a request as one without a key, since ``key=`` has found none."""
        if self._recording is not None and not self._recording.complete:
            self._stop_recording()
        running.set((attempt, self.engine))

    def _respond(self, core: CoreResponse) -> HttpResponse:
        self._core_response = core
        self._made = made = make_response(core, self._request)
        self._made_headers = list(made.items())
        return made

    def _protect(self, attempt: Attempt) -> Protection:
        self._protection = Protection(self.engine, attempt)
        running.set(self._protection.here)
        return self._protection

    def _started(self, instead: CoreResponse | None) -> CoreResponse | None:
        """Drop the protection if another response is sent instead of starting the view (L-10)."""
        if instead is not None:
            self._protection = None
            running.set(None)
        return instead

    def _refused(self, response: HttpResponseBase) -> HttpResponseBase:
        """Send the view's own refusal instead of the stored response."""
        private.on_close(response, self.end)
        return response

    # After the view

    def conclude(self, response: HttpResponseBase) -> HttpResponseBase:
        """Settle the attempt with the response that is about to be sent. Returns the response to send."""
        protection = self._protection
        if protection is None:
            return self._unprotected(response)
        change = self._change(protection.attempt, response)
        if change is not None:
            if self._session.must_save(change, response):
                change = self._session.save(change)
            self.engine.sync.run(self._follow(protection.attempt, change))
        self._start_capture(protection, response)
        if not response.streaming:
            return self._sent(protection.finish(), response)
        live = self._attach(protection, response)
        if isinstance(live, AsyncLiveBody):
            live.begun = True  # its iterator runs on an event loop, later
            return self._sent(None, response)
        live.prepare()
        return self._sent(live.verdict, response)

    async def aconclude(self, response: HttpResponseBase) -> HttpResponseBase:
        """``conclude``, awaited."""
        protection = self._protection
        if protection is None:
            return self._unprotected(response)
        await self._afollow(protection.attempt, response)
        self._start_capture(protection, response)
        if not response.streaming:
            return self._sent(await protection.afinish(), response)
        live = self._attach(protection, response)
        if isinstance(live, AsyncLiveBody):
            await live.prepare()
            return self._sent(live.verdict, response)
        live.begun = True  # its iterator runs in a thread, later
        return self._sent(None, response)

    async def aleave(self, response: HttpResponseBase) -> None:
        """Settle the attempt with a response that no client will read, since the client has left (L-05)."""
        protection = self._protection
        if protection is None:
            return
        await self._afollow(protection.attempt, response, guarded=True)
        self._start_capture(protection, response)
        if not response.streaming:
            await protection.afinish(guarded=True)
            return
        live = self._attach(protection, response)
        live.begun = True
        if isinstance(live, AsyncLiveBody):
            await live.drain()
        # Django closes no response of a cancelled chain. Closed in Django's thread, which has the view's connections.
        await sync_to_async(response.close)()

    # A retry finds the record even if the view has changed the caller (O-14)

    def _change(self, attempt: Attempt, response: HttpResponseBase) -> Change | None:
        caller, lease = attempt.caller, attempt.lease
        if caller is None or lease is None:
            return None
        return read_change(lambda: self._session.change(caller, lease.record_id, response))

    def _follow(self, attempt: Attempt, change: Change) -> Steps[None]:
        caller = attempt.take_caller()
        assert caller is not None
        return follow(attempt, caller, change, new_owner())

    async def _afollow(self, attempt: Attempt, response: HttpResponseBase, *, guarded: bool = False) -> None:
        change = self._change(attempt, response)
        if change is None:
            return
        if self._session.must_save(change, response):
            change = await self._asave(change)
        await self.engine.aio.run(self._follow(attempt, change), guarded=guarded)

    async def _asave(self, change: Change) -> Change:
        try:
            return await sync_to_async(self._session.save)(change)
        except Exception:  # no thread could be started
            return replace(change, carried=False)

    def _start_capture(self, protection: Protection, response: Any) -> None:
        if self.raised and response.status_code >= 500:
            protection.attempt.wish(None)  # idem.keep() was meant for the view's response, which this is not
        note = note_of(response, protection.attempt.policy)
        protection.capture.start(response.status_code, response_headers(response), note)
        if not response.streaming:
            protection.capture.add(response.content)
            private.on_close(response, self.end)

    def _attach(self, protection: Protection, response: Any) -> LiveBody | AsyncLiveBody:
        """Put the capture between the response and its iterator. It is closed first, since it drains the iterator."""
        live: LiveBody | AsyncLiveBody
        if response.is_async:
            live = AsyncLiveBody(protection, aiter(response.streaming_content), self.end)
        else:
            live = LiveBody(protection, self.end)
            live.attach(BoundIterable(protection.here, response.streaming_content))
        response.streaming_content = live  # so the server cannot send the file of a FileResponse by itself
        private.on_close(response, live.close, first=True)
        return live

    def _sent(self, verdict: Fate | CoreResponse | None, response: HttpResponseBase) -> HttpResponseBase:
        if isinstance(verdict, CoreResponse):
            return stand_in(verdict, response, self._policy, self._request)
        if verdict is Fate.UNRECORDED:
            mark_unrecorded(response)
        echo = None if self.attempt is None else self.attempt.echo
        if echo is not None:
            send_back(response, echo)
        return response

    def _unprotected(self, response: HttpResponseBase) -> HttpResponseBase:
        """Return one of the library's responses, or the response to a request without a key."""
        if self._core_response is None:
            if self._recording is not None:
                private.on_close(response, self.end)
            return bind_stream(response)
        self.end()
        if REPLAYED not in self._core_response.headers or is_untouched(
            response, self._made, self._made_headers, self._core_response
        ):
            return response
        # A replay is what was stored, whatever other middleware adds to it on the way.
        return stand_in(self._core_response, response, self._policy, self._request)

    def abort(self, error: BaseException) -> None:
        """The chain raised: settle the attempt, whose stages stay (L-04). The caller re-raises the error."""
        try:
            if self._protection is not None and not self._protection.settled:
                self._protection.abort(error)
        finally:
            self.end()

    async def aabort(self, error: BaseException) -> None:
        """``abort``, awaited."""
        try:
            if self._protection is not None and not self._protection.settled:
                await self._protection.aabort(error)
        finally:
            self.end()

    def end(self) -> None:
        """Release the request's body."""
        if self._recording is not None:
            self._recording.end()


def _renders(error: Exception) -> bool:
    """Whether Django's own handler makes a response of the exception (O-20)."""
    return isinstance(error, PermissionDenied)


def bind_stream(response: R) -> R:
    """Return the response of a request without a key. Stages in its stream run unrecorded."""
    here = running.get()
    stream: Any = response
    if stream.streaming and here is not None and getattr(stream, "file_to_stream", None) is None:
        source = stream.streaming_content
        bound = BoundAsyncIterator(here, aiter(source)) if stream.is_async else BoundIterable(here, source)
        stream.streaming_content = bound
    return response
