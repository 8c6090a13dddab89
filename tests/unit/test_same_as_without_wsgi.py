"""Order and context variables are the same with and without the library, in Flask, Django and plain WSGI.

Each application notes its steps with the value of a context variable: outer and inner layers, hooks, signals, views,
error handlers, streams, and what is closed. It runs without the library, without a key, and with a first key.
"""

import io
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Any
from uuid import uuid4

import flask
import pytest
from flask import Flask

from open_idempotency.flask import Idempotency
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.django_project.calls import OURS, project

from django.core.handlers.wsgi import WSGIHandler  # isort: skip (needs the settings of the module before)
from django.core.signals import request_finished, request_started  # isort: skip
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse  # isort: skip

TRAIL: ContextVar[str] = ContextVar("trail", default="")
NOTES: list[tuple[str, str]] = []
Make = Callable[[bool], Any]


def note(what: str) -> None:
    """Write a note."""
    NOTES.append((what, TRAIL.get()))


def step(what: str) -> None:
    """Write a note, and add the step to the context, where it stays; so later notes show how far it is visible."""
    note(what)
    TRAIL.set(f"{TRAIL.get()} > {what}")


def pieces() -> Iterator[bytes]:
    """A streamed body."""
    try:
        for number in range(3):
            step(f"piece {number}")
            yield b"%d" % number
    finally:
        note("stream ends")


class Declined(Exception):
    """An exception with a handler."""


def diary_of(make: Make, protected: bool, path: str, key: str | None) -> list[tuple[str, str]]:
    """The notes while a server sends one request, in a context of its own."""
    NOTES.clear()
    environ = {
        "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "", "SERVER_NAME": "test",
        "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1", "CONTENT_LENGTH": "2",
        "CONTENT_TYPE": "application/json", "wsgi.input": io.BytesIO(b"{}"), "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http", "wsgi.version": (1, 0), "wsgi.multithread": True, "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }  # fmt: skip
    if key is not None:
        environ["HTTP_IDEMPOTENCY_KEY"] = key
    copy_context().run(_serve, make(protected), environ)
    return list(NOTES)


def _serve(app: Any, environ: dict[str, Any]) -> None:
    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        statuses.append(status)
        return lambda data: note(f"wrote {data!r}")

    statuses: list[str] = []
    try:
        response = app(environ, start_response)
        note("responded")
        try:
            for chunk in response:
                if chunk:
                    note(f"sent {chunk!r}")
        finally:
            getattr(response, "close", lambda: None)()
    except Exception as error:
        note(f"the server sees {type(error).__name__}")
    note(f"the server is done: {statuses}")


# Plain WSGI


class Closing:
    """A response that notes when it is closed."""

    def __iter__(self) -> Iterator[bytes]:
        return pieces()

    def close(self) -> None:
        note("closed")


def plain(protected: bool) -> Any:
    """A WSGI application with a behaviour for each path."""

    def app(environ: Any, start_response: Any) -> Any:
        step(f"application, {environ['wsgi.input'].read()!r}")
        if environ["PATH_INFO"] == "/broken":
            raise ValueError
        start_response("201 Created", [("Content-Type", "text/plain")])
        return Closing() if environ["PATH_INFO"] == "/stream" else [b"done"]

    return IdempotencyMiddleware(app, "memory://") if protected else app


# Flask


def in_flask(protected: bool) -> Any:
    """A Flask application with hooks, signals and views."""
    app = Flask("shop")
    app.before_request(lambda: step("before"))
    app.teardown_request(lambda error: note(f"teardown, {type(error).__name__}"))
    app.teardown_appcontext(lambda error: note(f"application teardown, {type(error).__name__}"))

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        step("after")
        return response

    @app.errorhandler(Declined)
    def handler(error: Exception) -> tuple[str, int]:
        step("handler")
        return "declined", 402

    @app.post("/view")
    def view() -> flask.Response:
        step(f"view, {flask.request.get_data()!r}")
        flask.after_this_request(after)
        response = flask.Response("done", 201)
        response.call_on_close(lambda: note("closed"))
        return response

    @app.post("/declined")
    def declined() -> str:
        step("view")
        raise Declined

    @app.post("/broken")
    def broken() -> str:
        step("view")
        raise ValueError

    @app.post("/stream")
    def stream() -> flask.Response:
        response = flask.Response(flask.stream_with_context(pieces()))
        response.call_on_close(lambda: note("closed"))
        return response

    if protected:
        Idempotency(app, backend="memory://")
    return app


# Django


def outer(get_response: Any) -> Any:
    """A middleware of another library."""
    return _layer("outer", get_response)


def inner(get_response: Any) -> Any:
    """A middleware of another library."""
    return _layer("inner", get_response)


def _layer(name: str, get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        step(f"{name} enters")
        response = get_response(request)
        step(f"{name} leaves, {response.status_code}")
        return response

    return middleware


class Handles:
    """A middleware of another library that makes a response of an exception."""

    def __init__(self, get_response: Any) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        step(f"handler, {type(error).__name__}")
        return HttpResponse("declined", status=402) if isinstance(error, Declined) else None


def django_view(request: HttpRequest) -> Any:
    """A view for each path of the project; the paths are numbers."""
    step(f"view, {request.body!r}")
    return HttpResponse("done", status=201)


def django_declined(request: HttpRequest) -> Any:
    """Raises an exception that has a handler."""
    raise Declined


def django_broken(request: HttpRequest) -> Any:
    """Raises an exception without a handler."""
    raise ValueError


def django_stream(request: HttpRequest) -> Any:
    """Streams."""
    return StreamingHttpResponse(pieces())


VIEWS = {"/view": django_view, "/declined": django_declined, "/broken": django_broken, "/stream": django_stream}


def in_django(protected: bool) -> Any:
    """A handler whose settings are in force while it responds."""
    here = __name__
    theirs = [f"{here}.outer", f"{here}.inner", f"{here}.Handles"]

    def app(environ: Any, start_response: Any) -> Any:
        environ["PATH_INFO"] = f"/{list(VIEWS).index(environ['PATH_INFO'])}"
        with project(*VIEWS.values(), MIDDLEWARE=[*theirs[:1], *[OURS] * protected, *theirs[1:]]):
            return WSGIHandler()(environ, start_response)

    return app


@pytest.fixture
def signals() -> Iterator[None]:
    """Django's signals are noted too."""

    def started(**_: Any) -> None:
        note("request started")

    def finished(**_: Any) -> None:
        note("request finished")

    request_started.connect(started)
    request_finished.connect(finished)
    yield
    request_started.disconnect(started)
    request_finished.disconnect(finished)


PATHS = [*((plain, path) for path in ("/view", "/broken")), *((in_flask, path) for path in VIEWS)]
PATHS += [(in_django, path) for path in VIEWS]


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(("make", "path"), [*PATHS, (plain, "/stream")])
def test_without_a_key_an_application_sees_what_it_sees_without_us(make: Make, path: str) -> None:
    """R-07, R-08: the same steps in the same order, with the same values in the context."""
    without = diary_of(make, False, path, None)
    assert len(without) > 2
    assert diary_of(make, True, path, None) == without


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(("make", "path"), [case for case in PATHS if case[1] != "/stream"])
def test_a_first_request_is_to_an_application_as_one_without_us(make: Make, path: str) -> None:
    """O-01, R-07, R-08: the same steps in the same order, with the same values in the context."""
    assert diary_of(make, True, path, str(uuid4())) == diary_of(make, False, path, None)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("make", [plain, in_flask, in_django])
def test_a_stream_is_made_in_the_same_order_and_leaves_a_piece_later(make: Make) -> None:
    """R-03, R-07: WSGI does not say which piece is the last, so each waits for the next one; the other steps keep their
    order.
    """
    without = diary_of(make, False, "/stream", None)
    first = diary_of(make, True, "/stream", str(uuid4()))
    assert _begin(first, "piece", "stream", "closed") == _begin(without, "piece", "stream", "closed")
    assert _begin(first, "sent") == _begin(without, "sent")
    assert _begin(first, "before", "after", "outer", "inner") == _begin(without, "before", "after", "outer", "inner")
    assert first[-1][0] == without[-1][0]


def _begin(notes: list[tuple[str, str]], *words: str) -> list[str]:
    return [what for what, _ in notes if what.startswith(words)]
