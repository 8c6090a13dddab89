"""The client of a running ASGI request: whether it has left, and when the application learns that (R-06, L-05a).

Frameworks cancel a stream as soon as ``receive()`` returns the disconnect, or stop it when ``send()`` raises. So during
a stream both calls wait until the grace is over, or until the stream has ended. At any other time the application
learns of the disconnect at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from open_idempotency._engine.client_left import ClientLeft, Grace
from open_idempotency._runtime import loops

Message = MutableMapping[str, Any]

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
        #: the application has learned of it during its stream: what it sends now is no whole response
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

        If the application listens, the disconnect ends the stream. Otherwise this raises ``ClientLeft``, as nothing
        else would end it.
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
        """``receive()`` after the body: the disconnect, once the application may learn of it."""
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
