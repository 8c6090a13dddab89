"""One protected ASGI request: its client, its body on the way in, its response on the way out.

``Client`` knows whether the client has left, and when the application is notified of that (R-06, L-05a). Frameworks
cancel a stream as soon as ``receive()`` returns the disconnect, or stop it when ``send()`` raises. So during a stream
both calls wait until the grace is over, or until the stream has ended. At any other time the application is notified of
the disconnect at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.caller_changes import Change, Session, follow, read_change
from open_idempotency._core.commands import Steps
from open_idempotency._core.keys import Caller, with_echo
from open_idempotency._core.models import Headers, Identity, Request, Response
from open_idempotency._core.settlement import REPLACED, Fate, abort, begin, finish
from open_idempotency._core.stored_response import UNRECORDED, Capture
from open_idempotency._engine import shutdown, thread_calls
from open_idempotency._engine.bodies import RequestBody
from open_idempotency._engine.cancellation import hold_for
from open_idempotency._engine.engine import Engine, new_owner, running
from open_idempotency._engine.event_log import report_late_error
from open_idempotency._engine.shutdown import ClientLeft, Grace
from open_idempotency._runtime import clocks, loops, processes
from open_idempotency.exceptions import LeaseLost
from open_idempotency.policy import IdempotencyPolicy

if TYPE_CHECKING:
    from open_idempotency._engine.cancellation import Hold
    from open_idempotency._engine.cancellation_on_trio import TrioHold


# The client

_DISCONNECT = "http.disconnect"
_LONG = 3600.0
# A framework that streams asks for the disconnect right before it starts its response; other layers may lie between.
# Counted in looks of so many seconds, since an event loop that is held up starts no response either.
_LOOK, _LOOKS = 0.01, 10


class Client:
    """Listens to the server for the application, and for itself if the application streams without listening."""

    __slots__ = (
        "_ended", "_heeding", "_late", "_listening", "_polled", "_source", "_streaming", "_unwatch", "_waiting",
        "grace", "left", "notified",
    )  # fmt: skip

    def __init__(self, source: Callable[[], Awaitable[Message]], grace: Grace) -> None:
        self.grace = grace
        #: the server's disconnect, once it is known
        self.left: Message | None = None
        #: the application was notified of it during its stream: what it sends now is no whole response
        self.notified = False
        self._source = source
        self._streaming = False
        self._ended = False
        # how many calls of the application wait for the end of the grace
        self._heeding = 0
        self._late = False
        self._listening = False
        self._polled = False
        self._waiting: list[loops.Signal] = []
        self._unwatch: Callable[[], object] | None = None

    # What happens

    def begin_stream(self) -> None:
        """The application has started its response."""
        self._streaming = True
        if self.left is not None:
            self.grace.begin()
        if self._waiting:
            self._wake()

    def leave(self, message: Message | None = None) -> None:
        """Note that the client has left. ``message``: the server's disconnect."""
        if self.left is None:
            self.left = {"type": _DISCONNECT} if message is None else message
        if self._streaming:
            self.grace.begin()
        self._wake()

    def end(self) -> None:
        """The response is complete, or the attempt has failed: the disconnect is no longer withheld."""
        self._ended = True
        if self._waiting:
            self._wake()
        if self._unwatch is not None:
            self._unwatch()

    def watch(self) -> None:
        """Listen for the disconnect during a stream whose application does not, so that its grace begins.

        On an event loop that is neither asyncio's nor trio's the application has to listen.
        """
        if self._unwatch is None and not self._listening and self.left is None and not self._ended:
            if loops.current_library() is not None:
                self._unwatch = loops.spawn(self._listen)

    async def stops(self) -> bool:
        """Whether a part of the stream comes too late to be sent.

        If the application listens, the disconnect ends the stream. Otherwise nothing else would end it, so this raises
        ``ClientLeft``.
        """
        if self._ended or not (self.notified or self.grace.over):
            return False
        if self.notified or not self._heeding:
            self.notified = True
            raise ClientLeft(str(self.grace.error()))
        self._wake()
        # A generator that is cancelled in its own step is closed at once; one without pauses would never be.
        if self._late:
            await loops.sleep(0)
        self._late = True
        return True

    # What the application asks

    async def receive(self) -> Message:
        """``receive()`` after the body: the disconnect, once the application may be notified of it."""
        message = await self._hear()
        if message["type"] != _DISCONNECT:
            return message
        await self._await_start()
        self._heeding += 1
        try:
            while self._streaming and not self._ended and not self.grace.over:
                await self._pause(self.grace.left)
        finally:
            self._heeding -= 1
        self.notified = self.notified or (self._streaming and not self._ended)
        return message

    async def _await_start(self) -> None:
        """Before the response, wait a moment: a framework that is about to stream may start it in this time.

        An application that only polls is cancelled as soon as it would have to wait. It gets the disconnect at its next
        poll.
        """
        if self._streaming or self._polled:
            self._polled = False
            return
        self._polled = True
        for _ in range(_LOOKS):
            await self._pause(_LOOK)
            if self._streaming or self._ended:
                break
        self._polled = False

    async def _hear(self) -> Message:
        """The server's next message, from whichever call is listening already."""
        while self.left is None:
            if self._listening:
                await self._pause(_LONG)
                continue
            self._listening = True
            try:
                message = await self._source()
                if message["type"] != _DISCONNECT:
                    return message
                self.leave(message)
            finally:
                self._listening = False
                self._wake()
        return self.left

    async def _listen(self) -> None:
        with suppress(Exception):  # a server that is closing; the application's own calls still show it
            await self._hear()

    async def _pause(self, seconds: float) -> None:
        """Wait until something has happened, for ``seconds`` at most."""
        signal = loops.signal()
        self._waiting.append(signal)
        try:
            await signal.wait(seconds)
        finally:
            self._waiting.remove(signal)

    def _wake(self) -> None:
        """Wake all waiting calls. Callers check first whether there are any, since most requests never wait."""
        for signal in self._waiting:
            signal.set()


# The request

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: in the scope of a request that an outer middleware of this library protects
MARK = "open_idempotency"
#: in the scope of a request whose claim will be made when its endpoint is called: the exchange that will make it
PENDING = "open_idempotency.pending"

# Ways of responding that would bypass the capture; an application that does not find them sends bytes instead.
_HIDDEN_EXTENSIONS = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


class ChangingSession(Session, Protocol):
    """A session that also detects that the view has changed the caller."""

    def change(self, caller: Caller, record_id: bytes) -> Change | None:
        """The change that the view has made to the caller, or None. To be called before the session is sent."""
        ...


class Inner(Protocol):
    """What an exchange needs of its middleware."""

    engine: Engine

    def identify(self, scope: Scope) -> Identity | str | None:
        """The verified user, or the session that may name the caller; None where there is neither."""
        ...

    def session_of(self, scope: Scope) -> ChangingSession | None:
        """The session by which a changed caller is followed (O-14), for a scope that has one."""
        ...

    def call_app(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call the application on behalf of a protected request."""
        ...


class ClientGone(Exception):
    """The client left before its request was whole: no response is sent, and nothing runs."""


class Exchange:
    """One protected request: its body on the way in, its response on the way out."""

    __slots__ = (
        "_attempt", "_body", "_caller", "_capture", "_client", "_engine", "_gone", "_held", "_hold", "_inner", "_more",
        "_outlet", "_passes", "_pieces", "_policy", "_scope", "_session", "_settled", "_source", "_started", "_whole",
        "_withheld",
    )  # fmt: skip

    def __init__(self, inner: Inner, policy: IdempotencyPolicy, scope: Scope, receive: Receive, send: Send) -> None:
        self._inner = inner
        self._engine = inner.engine
        self._policy = policy
        self._scope = scope
        self._source = receive
        self._outlet = send
        self._body = RequestBody(policy)
        self._attempt: Attempt | None = None
        # who sent the request, and the session by which a change of the caller is followed (O-14)
        self._caller: Caller | None = None
        self._session: ChangingSession | None = None
        self._pieces: Iterator[tuple[bytes, bool]] = iter(())
        self._held: Message | None = None
        self._hold: Hold | TrioHold | None = None
        self._started = False
        self._settled = False
        self._withheld = False
        self._gone = False
        # whether the application has still to receive some of the body
        self._more = True
        # whether the whole body was received; and whether the request goes on as one without a key
        self._whole = self._passes = False
        # set when the attempt begins
        self._capture: Capture
        self._client: Client

    @property
    def attempt(self) -> Attempt | None:
        """The attempt that runs; None while the request is being admitted."""
        return self._attempt

    async def run(self, key_headers: Headers) -> None:
        """Admit the request; then run the application, or send the response that replaces it."""
        if "session" in self._scope:
            self._session = self._inner.session_of(self._scope)
        requests = shutdown.requests.by_pid[os.getpid()]
        requests.add(self)
        try:
            admission = await self._admit(request_of(self._scope), key_headers)
            if isinstance(admission, Response):
                await self._respond(admission)
            elif admission.passes:
                await self._let_through(admission)
            else:
                await self._protect(admission)
        except ClientGone:
            return
        finally:
            self._body.close()
            requests.discard(self)

    def _admit(self, request: Request, key_headers: Headers) -> Awaitable[Attempt | Response]:
        # Not ``async def``: no frame of its own is resumed with each command.
        intake = Intake(
            request,
            key_headers,
            new_owner(),
            self._identify,
            self._receive_body,
            self._engine.advice,
            self._session,
            renders=self._renders,
            holder=processes.names.by_pid[os.getpid()],
        )
        return self._engine.aio.run(admit(intake, self._policy))

    async def _identify(self) -> Identity | str | None:
        return self._inner.identify(self._scope)

    def _renders(self, error: Exception) -> bool:
        """Whether the framework makes a response of the exception that ``scope=`` has raised (O-20)."""
        return False

    async def _receive_body(self) -> RequestBody:
        body = self._body
        for name, value in self._scope["headers"]:
            if name == b"content-length":
                body.check_length(value)
        while True:
            message = await self._source()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._whole = not message.get("more_body", False)
            for _ in body.add_in_turns(message.get("body", b"")):
                await loops.sleep(0)
            if self._whole:
                return body

    async def _let_through(self, attempt: Attempt) -> None:
        """Run a request in which ``key=`` has found no key, as one without: no response of it is captured."""
        self._pass(0)
        mark = running.set((attempt, self._engine))
        try:
            await self._inner.call_app(self._scope, self._receive, self._outlet)
        finally:
            running.reset(mark)

    def _pass(self, read: int) -> None:
        """Give the application what was received of the body, then the rest. ``read``: the bytes that it has by now."""
        self._passes = True
        self._pieces = self._body.pieces(read)
        self._more = self._more and (self._body.size > read or self._whole)

    async def _protect(self, attempt: Attempt) -> None:
        engine = self._engine
        self._attempt = attempt
        if self._session is not None:
            self._caller = attempt.take_caller()
        self._capture = Capture(self._policy.max_response_bytes)
        self._client = Client(self._source, Grace(self._policy.stream_grace, self._capture))
        self._scope[MARK] = attempt
        extensions = self._hide_extensions() if "extensions" in self._scope else None
        mark = running.set((attempt, engine))
        try:
            self._pieces = self._body.pieces()  # may find no memory
            if clocks.elapsed() > attempt.sure_until and (instead := await self._late(attempt)) is not None:
                self._client.end()
                await self._respond(instead)
                return
            await self._run_app(attempt, self._inner.call_app)
            if not self._settled:
                await self._give_up(attempt)
        except BaseException as error:
            report_late_error(attempt, error)
            if self._settled or not await self._stand_in(attempt, error):
                raise
        finally:
            running.reset(mark)
            if not self._settled:
                self._client.end()
            if extensions is not None:
                self._scope["extensions"] = extensions

    def _run_app(self, attempt: Attempt, app: App) -> Awaitable[None]:
        """Call the application. Its cancellation waits for the functions that it runs in threads (L-09)."""
        if thread_calls.pending.keys() & sys.modules.keys():
            thread_calls.hook()
        call = app(self._scope, self._receive, self._send)
        hold = self._hold = hold_for(attempt)
        return call if hold is None else hold.run(call)

    async def _late(self, attempt: Attempt) -> Response | None:
        """Check a lease that may have ended (L-10). Returns the response to send instead of calling the application."""
        while clocks.elapsed() > attempt.sure_until:
            instead = await self._engine.aio.run(begin(attempt))
            if instead is not None:
                self._settled = True
                self._engine.heartbeat.forget(attempt)
                return instead
        return None

    async def _give_up(self, attempt: Attempt) -> None:
        """The application returned before its response was complete: an error, unless the client has left."""
        error = RuntimeError("the application returned before its response was complete")
        if self._client.left is None:
            raise error
        await self._settle(attempt, abort(attempt, self._client.grace.error() if self._client.notified else error))

    async def _stand_in(self, attempt: Attempt, error: BaseException) -> bool:
        """Settle an attempt that raised (L-04).

        True if nothing is left to send: another response was sent (L-03, S-04), or the stream was to be closed (L-05a).
        """
        if self._client.notified and _comes_of_leaving(error):
            clear_frames(error.__traceback__)  # the stream's generator is among them, and is closed before its retry
            await self._settle(attempt, abort(attempt, self._client.grace.error()))
            return True
        verdict = await self._settle(attempt, abort(attempt, error), guarded=not isinstance(error, Exception))
        if isinstance(verdict, Fate) or self._started:
            return False
        await self._respond(verdict)
        return isinstance(error, REPLACED)

    async def _settle(
        self, attempt: Attempt, steps: Steps[Fate | Response], *, guarded: bool = False
    ) -> Fate | Response:
        self._settled = True
        try:
            return await self._engine.aio.run(steps, guarded=guarded)
        finally:
            self._engine.heartbeat.forget(attempt)
            self._client.end()

    def _hide_extensions(self) -> Any:
        """Hide extensions that would bypass the capture (R-06). Returns the original ones, to be restored."""
        extensions = self._scope.get("extensions")
        if not extensions or _HIDDEN_EXTENSIONS.isdisjoint(extensions):
            return None
        self._scope["extensions"] = {n: v for n, v in extensions.items() if n not in _HIDDEN_EXTENSIONS}
        return extensions

    # What the application sees

    async def _receive(self) -> Message:
        """The body that was received already, then the server's messages: in the end, the disconnect (R-06)."""
        if not self._more:
            return await (self._source() if self._passes else self._client.receive())
        if self._body.spooled:
            await loops.sleep(0)  # these pieces come without waiting, so let other tasks run
        piece, self._more = next(self._pieces)
        return {"type": "http.request", "body": piece, "more_body": self._more or (self._passes and not self._whole)}

    async def _send(self, message: Message) -> None:
        """Hold the start back until it is known what may be sent; copy the body (R-03)."""
        if self._settled:  # trailers, or a response of the layer that cancelled the request inside the application
            self._withheld = self._withheld and message["type"] != "http.response.start"
            await self._forward(message)
        elif message["type"] == "http.response.start":
            if self._caller is not None:
                await self._follow(self._caller)
            headers = list(message.get("headers", ()))  # once: any iterable may come
            self._held = {**message, "headers": headers}
            self._capture.start(message["status"], headers)
            self._client.begin_stream()
        elif message["type"] == "http.response.body":
            if self._client.left is not None and (message.get("more_body", False) or self._client.notified):
                if await self._client.stops():
                    return
            self._capture.add(message.get("body", b""))
            if message.get("more_body", False) and not self._capture.whole:
                await self._let_go(message)
                self._client.watch()
            else:
                await self._send_last(message)
        else:
            await self._forward(message)

    async def _follow(self, caller: Caller) -> None:
        """Let a retry find the record if the view has changed the caller (O-14). Called before the session is sent."""
        self._caller = None
        attempt, session = self._attempt, self._session
        if attempt is None or attempt.lease is None or session is None:
            return
        record_id = attempt.lease.record_id
        change = read_change(lambda: session.change(caller, record_id))
        if change is not None:
            await self._engine.aio.run(follow(attempt, caller, change, new_owner()))

    async def _send_last(self, message: Message) -> None:
        """Settle the attempt, then send: nothing of the last message leaves before the response is durable (R-03)."""
        attempt = self._attempt
        assert attempt is not None
        if self._hold is not None:
            self._hold.recording = True
        verdict = await self._settle(attempt, finish(attempt, self._capture.response()))
        if self._hold is not None and await self._hold.release():
            self._withheld = True  # the layer that cancelled the request decides what its client gets
        elif isinstance(verdict, Fate):
            if verdict is Fate.UNRECORDED and self._held is not None:
                self._held = {**self._held, "headers": [*self._held["headers"], UNRECORDED]}
            await self._let_go(message)
        elif self._started:
            raise LeaseLost("another attempt owns the record, as logged before; the end of this stream is withheld")
        else:
            await self._respond(verdict)

    # What the server sees

    def _let_go(self, message: Message) -> Awaitable[None]:
        """Forward a part of the body, after the start that was held back."""
        held, self._held = self._held, None
        if held is None:
            return self._forward(message)
        echo = None if self._attempt is None else self._attempt.echo
        if echo is not None and not any(name.lower() == echo[0] for name, _ in held["headers"]):
            held = {**held, "headers": [*held["headers"], echo]}
        self._started = True
        if self._hold is not None:
            self._withheld = self._hold.begun()
        return self._forward(held, message)

    async def _respond(self, response: Response) -> None:
        if self._attempt is not None and self._attempt.echo is not None:
            response = with_echo(response, self._attempt.echo)
        headers = [(name.lower(), value) for name, value in response.headers]
        await self._forward(
            {"type": "http.response.start", "status": response.status, "headers": headers},
            {"type": "http.response.body", "body": response.body or b"", "more_body": False},
        )
        self._gone = True  # the response is complete: what the application still sends is dropped

    async def _forward(self, *messages: Message) -> None:
        """Send to the client. A client that has left does not stop the handler, whose response is stored (L-05)."""
        if self._gone or self._withheld:
            return
        try:
            for message in messages:
                await self._outlet(message)
        except OSError:
            self._gone = True
            if self._attempt is not None:
                self._client.leave()


def _comes_of_leaving(error: BaseException | None) -> bool:
    """Whether an error is the ``ClientLeft`` that ``send()`` has raised, or was made of it by a framework."""
    while error is not None and not isinstance(error, ClientLeft):
        # The task group of a framework wraps what one of its tasks has raised.
        grouped: tuple[BaseException, ...] = getattr(error, "exceptions", ())
        error = grouped[0] if len(grouped) == 1 else error.__cause__ or error.__context__
    return error is not None


def request_of(scope: Scope) -> Request:
    raw = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    # Of the route that a router around the middleware has found; Litestar has it as text.
    template = getattr(scope.get("route"), "path", None) or scope.get("path_template")
    return Request(
        method=scope["method"].upper(),
        path=raw.partition(b"?")[0],
        query=scope.get("query_string", b""),
        headers=scope["headers"],
        native=scope,
        route=template if isinstance(template, str) else None,
    )
