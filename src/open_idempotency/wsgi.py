"""Idempotency keys for any WSGI application (PEP 3333): a middleware, and one small object for each protected request.

Requests that are not covered pass through untouched: other methods, and requests without a key. A covered request goes
through the core's order of operations, between the server's ``wsgi.input`` and ``start_response``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.models import Headers, Response
from open_idempotency._core.settlement import Fate
from open_idempotency._core.stored_response import UNRECORDED
from open_idempotency._engine.bodies import RequestBody
from open_idempotency._engine.engine import Engine, Running, new_owner
from open_idempotency._engine.shutdown import ClientLeft
from open_idempotency._routes.coverage import NOTHING_MARKED, Coverages, CoveredPaths, PathRules, Route, spelling
from open_idempotency._routes.survey import layers_inside, refuse_asgi, warn_of_layers
from open_idempotency._runtime import processes
from open_idempotency._wsgi import (
    MARK,
    OFF,
    App,
    BodyIncomplete,
    BoundIterable,
    Environ,
    LiveBody,
    Protection,
    StartResponse,
    bound,
    find_key,
    give_body,
    give_rest,
    hide_file_wrapper,
    native_headers,
    octets,
    read_body,
    read_request,
    status_line,
    with_echo_header,
)
from open_idempotency.backends.registry import Given
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.rules import IdempotencyRule, RulesByPath, exempt

__all__ = ["App", "Environ", "IdempotencyMiddleware", "IdempotencyRule", "StartResponse", "exempt"]

_UNRECORDED = (UNRECORDED[0].decode("ascii"), UNRECORDED[1].decode("ascii"))


class IdempotencyMiddleware:
    """Protects the requests of a WSGI application that carry an ``Idempotency-Key``.

    ``backend``: a URL such as ``sqlite:///idempotency.db`` or an instance. ``policy`` and ``fields``: an
    ``IdempotencyPolicy``, its fields, or both. ``rules``: paths, each with policy fields of its own, such as
    ``{"/payments/*": {"required": True}, "POST /ping": exempt}``. Raises ``ConfigurationError`` at once if they are
    wrong. The caller is ``REMOTE_USER``, if the server or an outer middleware has verified one. Since 0.1.
    """

    def __init__(
        self,
        app: App,
        backend: Given | None = None,
        *,
        policy: IdempotencyPolicy | None = None,
        rules: RulesByPath | None = None,
        **fields: Any,
    ) -> None:
        refuse_asgi(app)
        self.app = app
        self.engine = Engine(backend, policy, fields, threads=True, sessions=False)
        coverages = Coverages(self.engine)
        self._paths = PathRules(rules, coverages) if rules else None
        self._methods = self.engine.policy.methods if self._paths is None else self._paths.methods
        self._off = not self.engine.policy.enabled
        if self._off:
            self._methods = frozenset()
        elif self._paths is None and coverages.marked_only:
            raise ConfigurationError(NOTHING_MARKED)
        self._coverages = coverages
        #: the routes that are covered, for operators
        self.covering: CoveredPaths = CoveredPaths(coverages, self._paths)
        warn_of_layers(layers_inside(app, IdempotencyMiddleware), self.engine.policy)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        # Frameworks read it in upper case, whatever the server passes on.
        if environ["REQUEST_METHOD"].upper() not in self._methods:
            if not self._off or MARK in environ:  # an outer middleware that protects the request keeps it
                return self.app(environ, start_response)
            environ[OFF] = True
            return self._run_plainly(Attempt(self.engine.policy), environ, start_response)
        route = self._coverages.default if self._paths is None else self._find_route(self._paths, environ)
        if route is None or MARK in environ:
            return self.app(environ, start_response)
        if not route.always and not any(name in environ for name, _ in route.environ_names):
            for name in route.environ_spellings:
                if name in environ:
                    spelling.warn(name, route.policy)
            return self._run_plainly(Attempt(route.policy), environ, start_response)
        return _Exchange(self, route.policy, environ, start_response).run(find_key(environ, route.environ_names))

    def _find_route(self, paths: PathRules, environ: Environ) -> Route | None:
        """How the path and the method of a request are covered; None if they are not."""
        method = environ["REQUEST_METHOD"].upper()
        path = octets(environ.get("PATH_INFO", "")).decode("utf-8", "replace")
        route = self._coverages.by(paths.find(method, path))
        return route if route is not None and method in route.policy.methods else None

    def _run_plainly(self, attempt: Attempt, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        here: Running = (attempt, self.engine)
        result = bound(here, self.app, environ, start_response)
        if _is_complete(result) or _is_file(result, environ):
            return result
        return BoundIterable(here, result)

    def identify(self, environ: Environ) -> str | None:
        """The verified user of a request, or None."""
        return environ.get("REMOTE_USER") or None


def _is_complete(result: Iterable[bytes]) -> bool:
    """Whether no code of the application is left to run."""
    return isinstance(result, list | tuple) and not hasattr(result, "close")


def _is_file(result: Iterable[bytes], environ: Environ) -> bool:
    """Whether the server recognises the result as a file, which it sends by itself."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(result, wrapper)


def _close_both(result: Iterable[bytes], body: RequestBody) -> None:
    try:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    finally:
        body.close()


class _Exchange:
    """One protected request: its body on the way in, and the iterable of its response on the way out."""

    __slots__ = (
        "_body", "_environ", "_gone", "_held", "_inner", "_live", "_outlet", "_outlet_write", "_policy", "_replaced",
        "_started",
    )  # fmt: skip

    def __init__(
        self, inner: IdempotencyMiddleware, policy: IdempotencyPolicy, environ: Environ, start_response: StartResponse
    ) -> None:
        self._inner = inner
        self._policy = policy
        self._environ = environ
        self._outlet = start_response
        self._outlet_write: Callable[[bytes], object] | None = None
        self._body = RequestBody(policy)
        self._held: tuple[str, list[tuple[str, str]]] | None = None
        self._live: LiveBody
        self._started = False
        self._replaced = False
        self._gone = False

    def run(self, key_headers: Headers) -> Iterable[bytes]:
        """Admit the request. Then run the application, or send the response that replaces it."""
        engine = self._inner.engine
        request = read_request(self._environ, self._environ)
        intake = Intake(
            request,
            key_headers,
            new_owner(),
            self._identify,
            self._receive_body,
            engine.advice,
            holder=processes.name(),
        )
        try:
            admission = engine.sync.run(admit(intake, self._policy))
        except BodyIncomplete as error:
            self._body.close()
            return self._send(Response(error.status, [(b"content-length", b"0")], b""))
        except BaseException:
            self._body.close()
            raise
        if isinstance(admission, Response):
            self._body.close()
            return self._send(admission)
        if admission.passes:
            return self._let_through(admission)
        self._live = LiveBody(Protection(engine, admission), self._body.close)
        return self._protect(admission)

    def _identify(self) -> str | None:
        return self._inner.identify(self._environ)

    def _receive_body(self) -> RequestBody:
        read_body(self._environ, self._body)
        return self._body

    def _let_through(self, attempt: Attempt) -> Iterable[bytes]:
        """Run a request as one without a key, since ``key=`` found none. The application reads the body again."""
        give_rest(self._environ, self._body)
        here: Running = (attempt, self._inner.engine)
        try:
            result = bound(here, self._inner.app, self._environ, self._outlet)
        except BaseException:
            self._body.close()
            raise
        if _is_complete(result):
            self._body.close()
            return result
        return BoundIterable(here, result, partial(_close_both, result, self._body))

    def _protect(self, attempt: Attempt) -> Iterable[bytes]:
        environ, live = self._environ, self._live
        environ[MARK] = attempt
        hide_file_wrapper(environ)
        try:
            give_body(environ, self._body)
            instead = live.protection.begin()
            if instead is not None:
                live.close()
                return self._send(instead)
            here = live.protection.here
            result = bound(here, self._inner.app, environ, self._start_response)
            if isinstance(result, list | tuple) and _is_complete(result) and not live.taken:
                live.take_whole(result)
                live.close()
                return self._let_whole_go(result)
            live.attach(BoundIterable(here, result))
        except BaseException as error:
            return self._stand_in(error)
        return self

    def _stand_in(self, error: BaseException) -> Iterable[bytes]:
        try:
            self._live.fail(error)
        finally:
            self._live.close()
        assert isinstance(self._live.verdict, Response)
        return self._send(self._live.verdict)

    # What the application sees

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Hold back the status and headers until a response may be sent."""
        live = self._live
        if exc_info is None and self._held is not None:
            raise RuntimeError("start_response was called again without exc_info")
        if exc_info is not None and live.taken:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it holds this frame
        self._held = (status, list(headers))
        listed = [(octets(name), octets(value)) for name, value in headers]
        live.protection.capture.start(int(status[:3]), listed)
        return self._write

    def _write(self, data: bytes) -> None:
        """Send a part of the body by WSGI's ``write``. The end is held back too. Raises ``ClientLeft`` (L-05a)."""
        grace = self._live.protection.grace
        if self._gone and grace.over:
            raise ClientLeft(str(grace.error()))
        ready = self._live.take(data)
        if not ready:
            return
        self._let_start_go()
        assert self._outlet_write is not None
        if not self._gone:
            try:
                self._outlet_write(ready)
            except OSError:
                self._gone = True  # the client left; the handler continues (L-05)
                grace.begin()

    # What the server sees

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._replaced:
            raise StopIteration
        chunk = next(self._live, b"")
        verdict = self._live.verdict
        if isinstance(verdict, Response):
            self._replaced = True
            chunk = b"".join(self._send(verdict))
        else:
            self._let_start_go()
        if not chunk:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Called by the server when it is done, or when its client left."""
        self._live.close()

    def _let_whole_go(self, chunks: list[bytes] | tuple[bytes, ...]) -> Iterable[bytes]:
        if isinstance(self._live.verdict, Response):
            return self._send(self._live.verdict)
        self._let_start_go()
        return chunks

    def _let_start_go(self) -> None:
        if self._started:
            return
        assert self._held is not None
        self._started = True
        status, headers = self._held
        headers = with_echo_header(headers, self._live.protection.attempt)
        if self._live.verdict is Fate.UNRECORDED:
            headers.append(_UNRECORDED)
        self._outlet_write = self._outlet(status, headers)

    def _send(self, response: Response) -> list[bytes]:
        self._outlet(status_line(response.status), native_headers(response))
        return [response.body] if response.body else []
