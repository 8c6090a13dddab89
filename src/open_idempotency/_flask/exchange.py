"""A covered request of a Flask application: ``Exchange`` with a key, ``Plain`` without a record.

Flask's session is in a cookie, so a client that has lost the response still has the session that it sent. A session
names the caller (O-19). If the view changes the caller, the changed session carries the id of the record, which leads a
retry to the record (O-14).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from flask import Flask, Request, Response, abort, session
from flask import globals as flask_globals
from flask.sessions import NullSession
from werkzeug.datastructures import Headers as FlaskHeaders
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.caller_changes import Change, follow, read_change
from open_idempotency._core.identity import entries_of
from open_idempotency._core.keys import Caller
from open_idempotency._core.models import Headers, Identity
from open_idempotency._core.models import Response as CoreResponse
from open_idempotency._core.settlement import Fate
from open_idempotency._core.stored_response import BODILESS, CORS, REPLAYED, UNRECORDED, is_stored_header
from open_idempotency._engine.bodies import RequestBody
from open_idempotency._engine.engine import Engine, Running, new_owner, running
from open_idempotency._routes.coverage import call_to_mark, has_decorators_above, is_marked, reveals_a_record
from open_idempotency._runtime import processes
from open_idempotency._wsgi import (
    MARK,
    BodyIncomplete,
    BoundIterable,
    LiveBody,
    Protection,
    give_body,
    give_rest,
    hide_file_wrapper,
    native_headers,
    octets,
    read_body,
    read_request,
)
from open_idempotency.exceptions import BodyTooLarge, IdempotencyError
from open_idempotency.policy import IdempotencyPolicy

# Responses, from and to the core

# Flask changes headers when it sends them: it makes URLs absolute, and omits some from 204 and 304.
_PLAIN = Response.get_wsgi_headers
_MADE_ANEW = frozenset({b"location", b"content-location"})


def make_response(app: Flask, core: CoreResponse) -> Response:
    """A Flask response with the status, headers and body of a core response, and no headers of its own."""
    headers = FlaskHeaders(native_headers(core))
    typed = "content-type" in headers
    # A list, since Flask adds a Content-Length of its own to bytes.
    response: Response = app.response_class([core.body or b""], core.status, headers)
    if not typed:
        del response.headers["Content-Type"]
    return response


def is_untouched(response: Response, made: Response, headers: list[tuple[str, str]], core: CoreResponse) -> bool:
    """Whether a response has not changed since ``make_response`` made it. ``headers``: those it had then."""
    return (
        response is made
        and made.status_code == core.status
        and list(made.headers) == headers
        and made.get_data() == (core.body or b"")
    )


def stand_in(app: Flask, core: CoreResponse, current: Response, policy: IdempotencyPolicy) -> Response:
    """The core's response instead of the current one.

    Only headers that are never stored stay from the current response (R-02): its cookies, CORS headers and date. The
    functions that ran now know which origins are allowed; the record may not (R-11).
    """
    response = make_response(app, core)
    own = {name.lower() for name, _ in core.headers}
    for name in [name.decode("ascii") for name in own if name.startswith(CORS)]:
        response.headers.setlist(name, _set_anew(current, name, response.headers.getlist(name)))
    for name, value in current.headers:
        field = octets(name).lower()
        if field not in own and not is_stored_header(field, policy.keep_headers, policy.drop_headers):
            response.headers.add(name, value)
    response.call_on_close(current.close)
    return response


def _set_anew(current: Response, name: str, stored: list[str]) -> list[str]:
    """The values of a header that the current response has instead of the stored ones, or after them."""
    values = current.headers.getlist(name)
    added = len(values) > len(stored) and values[: len(stored)] == stored
    return values[len(stored) :] if added else values or stored


def bind_stream(here: Running, response: Response) -> None:
    """Let the iterator of a response run in the context of its request, wherever the server iterates over it."""
    if not response.is_sequence and not response.direct_passthrough:
        close = getattr(response.response, "close", None)
        response.response = BoundIterable(here, response.iter_encoded(), close)


def response_headers(response: Response, environ: dict[str, Any]) -> Headers:
    """The headers that the response will send, without a Content-Length, which is never stored."""
    headers = [(octets(name), octets(value)) for name, value in response.headers]
    if type(response).get_wsgi_headers is _PLAIN and response.status_code not in BODILESS:
        if not any(name.lower() in _MADE_ANEW for name, _ in headers):
            return headers
    return [(octets(name), octets(value)) for name, value in response.get_wsgi_headers(environ)]


# Sessions: the caller whom they name (O-19), and a changed caller (O-14)

_NAME = "_open_idempotency"
# A cookie is small, so it carries only the last record.


class SessionTrace:
    """The session of one request. Reading it changes no response."""

    __slots__ = ()

    def carried(self, caller: Caller) -> bytes | None:
        """The record that began this session, if it was this same request, for the user whom the session names now."""
        began = read_session().get(_NAME) if caller.named else None
        found = began.get(caller.own.hex()) if isinstance(began, dict) else None
        return bytes.fromhex(found) if isinstance(found, str) else None

    def lost(self) -> str | None:
        """None: a server cannot end a session in a cookie."""
        return None

    def change(self, caller: Caller, record_id: bytes, identify: Callable[[], Identity]) -> Change | None:
        """The change that the view has made to the caller, or None. To be called before the session is saved.

        ``identify``: returns the present caller.
        """
        here = _session()
        try:
            identity = identify()
        except Exception:  # an error must not lose the view's outcome
            identity = Identity(None)
        # A session that is not marked as modified is not saved.
        if not getattr(here, "modified", True) and (callable(caller.policy.scope) or identity == caller.identity):
            return None
        now = caller.record(identity)
        if now == caller.own:
            return None
        if now is None or not caller.names(identity) or isinstance(here, NullSession):
            return Change(carried=False)
        session[_NAME] = {now.hex(): record_id.hex()}
        return Change(carried=True)


def read_session() -> dict[str, Any]:
    """A copy of the entries of the session. Reading them changes no response."""
    return entries_of(_session())


def _session() -> Any:
    """The session itself. Since Flask 3.1.3 its proxy marks it as accessed, so it is read from the context."""
    context: Any = vars(flask_globals).get("request_ctx")
    held = {} if context is None else vars(context._get_current_object())
    for name in ("_session", "session"):
        if held.get(name) is not None:
            return held[name]
    return session._get_current_object()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # a LocalProxy, typed as what it stands for


# The request


class Plain:
    """A covered request without a key: it has the methods of ``Exchange``, binds the view's context, and stores
    nothing.
    """

    __slots__ = ("_bound", "_here", "_previous", "_request")

    def __init__(self, engine: Engine, request: Request, policy: IdempotencyPolicy) -> None:
        self._request = request
        self._here: Running = (Attempt(policy), engine)
        self._previous: Running | None = None
        self._bound = False

    @property
    def attempt(self) -> None:
        """None: nothing is recorded, so no error can follow a record."""

    def receive(self) -> None:
        """Do nothing: the body stays unread."""

    def begin(self) -> None:
        """Bind the context."""
        self._request.environ[MARK] = self._here[0]
        self._previous = running.get()
        self._bound = True
        running.set(self._here)

    def viewed(self) -> None:
        """Do nothing: without a record a retry finds none."""

    def overtaken(self, error: IdempotencyError) -> Response:
        """Raise the error: without a record no stored response replaces it."""
        raise error

    def conclude(self, response: Response) -> Response:
        """Return the response as it is. Its stream continues in the context of the request."""
        if self._bound:
            bind_stream(self._here, response)
        self._unbind()
        return response

    def end(self, error: BaseException | None) -> None:
        """Unbind the context: the request is over."""
        self._unbind()

    def _unbind(self) -> None:
        # Not reset: that works only in the context where it was set, and a test client may end a request in another
        # one.
        if self._bound:
            self._bound = False
            running.set(self._previous)


class Setting(NamedTuple):
    """What the requests of one application share."""

    held: weakref.ReferenceType[Flask]
    engine: Engine

    @property
    def app(self) -> Flask:
        """The application. It lives at least as long as its requests."""
        app = self.held()
        assert app is not None, "the application is gone, and a method of it was called"
        return app


class Exchange:
    """One covered request. Flask's stages call ``receive``, ``begin``, ``conclude`` and ``end``, in this order."""

    __slots__ = (
        "_body", "_bound", "_core_response", "_key_headers", "_live", "_made", "_made_headers", "_plain", "_policy",
        "_previous", "_protection", "_request", "_session", "_setting", "_too_large",
    )  # fmt: skip

    def __init__(self, setting: Setting, request: Request, policy: IdempotencyPolicy, key_headers: Headers) -> None:
        self._setting = setting
        self._request = request
        self._policy = policy
        self._key_headers = key_headers
        self._body = RequestBody(policy)
        self._too_large: Exception | None = None
        # set if key= has found no key: the request runs as one without a key
        self._plain: Running | None = None
        self._protection: Protection | None = None
        self._session = SessionTrace()
        self._live: LiveBody | None = None
        self._core_response: CoreResponse | None = None
        # the Flask response made of it, and its headers at that time
        self._made: Response
        self._made_headers: list[tuple[str, str]]
        self._previous: Running | None = None
        self._bound = False

    @property
    def attempt(self) -> Attempt | None:
        """The attempt of this request; None if the claim was refused, or before it is made."""
        return None if self._protection is None else self._protection.attempt

    # Before the view

    def receive(self) -> None:
        """Read the body of a request with a key, and put it back for other functions.

        It must be the first to read, since parsing a form, as a ``before_request`` function may do, discards the raw
        bytes.
        """
        if not self._key_headers and self._policy.key is None:
            return
        try:
            self._read_body()
        except (BodyTooLarge, RequestEntityTooLarge) as error:
            self._too_large = error  # refused later, after authentication
        except BodyIncomplete as error:
            abort(error.status)

    def _read_body(self) -> None:
        request = self._request
        if "stream" in vars(request):
            if "form" in vars(request):
                raise RuntimeError("the request's form was parsed before Flask's before_request functions ran")
            self._body.add(request.get_data(cache=True))
            return
        limit = request.max_content_length
        if limit is not None and (request.content_length or 0) > limit:
            raise RequestEntityTooLarge
        try:
            read_body(request.environ, self._body)
        except BodyTooLarge:
            give_rest(request.environ, self._body)
            raise
        if limit is not None and self._body.size > limit:
            raise RequestEntityTooLarge
        give_body(request.environ, self._body)

    def begin(self) -> Response | None:
        """Claim the request and bind its context. Returns the response to send instead of running the view, or None."""
        admission = self._admit()
        if isinstance(admission, CoreResponse):
            return self._respond_if_permitted(admission)
        if admission.passes:
            self._plain = (admission, self._setting.engine)
            self._bind(self._plain)
            return None
        self._protection = protection = Protection(self._setting.engine, admission)
        self._request.environ[MARK] = admission
        hide_file_wrapper(self._request.environ)
        instead = protection.begin()
        if instead is not None:
            return self._respond_if_permitted(instead)
        self._bind(protection.here)
        return None

    def _bind(self, here: Running) -> None:
        self._request.environ[MARK] = here[0]
        self._previous = running.get()
        self._bound = True
        running.set(here)

    def _admit(self) -> Attempt | CoreResponse:
        request, source = self._request, self._request.environ["wsgi.input"]
        asked = read_request(request.environ, request)
        asked.route = None if request.url_rule is None else request.url_rule.rule
        intake = Intake(
            asked,
            self._key_headers,
            new_owner(),
            self._identify,
            self._received,
            self._setting.engine.advice,
            self._session,
            renders=self._renders,
            holder=processes.name(),
        )
        # The fingerprint reads the same file as the view, and other code may have begun to read it.
        offset = source.tell() if self._body.spooled and self._too_large is None else None
        try:
            return self._setting.engine.sync.run(admit(intake, self._policy))
        finally:
            if offset is not None:
                source.seek(offset)

    def _identify(self) -> Identity:
        if callable(self._policy.scope):
            return Identity(None)
        user = verified_user(self._setting.app, self._request)
        return Identity(user, session=None if user is not None else read_session())

    def _renders(self, error: Exception) -> bool:
        """Whether Flask, or an error handler of the application, turns this error into a response (O-20).

        A handler for every ``Exception`` does not count, since its response is a 500.
        """
        if isinstance(error, HTTPException):
            return True
        handlers = self._setting.app.error_handler_spec
        known = [handlers.get(name, {}).get(None, {}) for name in (*self._request.blueprints, None)]
        return any(isinstance(error, kind) and kind is not Exception for kinds in known for kind in kinds)

    def _received(self) -> RequestBody:
        if self._too_large is not None:
            raise self._too_large
        return self._body

    def _respond(self, core: CoreResponse) -> Response:
        self._core_response = core
        self._made = made = make_response(self._setting.app, core)
        self._made_headers = list(made.headers)
        return made

    def _respond_if_permitted(self, core: CoreResponse) -> Response:
        """The response of a record, unless a decorator above ``@idempotent`` refuses the caller now (O-23)."""
        app, request = self._setting.app, self._request
        view = app.view_functions[request.url_rule.endpoint] if request.url_rule is not None else None
        if view is None or not reveals_a_record(core) or not _may_refuse(view, request.method):
            return self._respond(core)
        refusal: Any = call_to_mark(request, lambda: app.ensure_sync(view)(**(request.view_args or {})))
        return self._respond(core) if refusal is None else app.make_response(refusal)

    def overtaken(self, error: IdempotencyError) -> Response:
        """The response for a view that noticed a later attempt (L-03) or is in doubt (S-04).

        Raises the error if no response replaces it.
        """
        protection = self._protection
        verdict = protection.abort(error) if protection is not None and not protection.settled else None
        if isinstance(verdict, CoreResponse):
            return self._respond(verdict)
        raise error

    # After the view

    def viewed(self) -> None:
        """Called after the view. If the view has changed the caller, let a retry find the record anyway (O-14).

        Called before the session is saved, and before the response is settled.
        """
        protection, session = self._protection, self._session
        if protection is None or protection.settled:
            return
        attempt = protection.attempt
        lease, caller = attempt.lease, attempt.take_caller()
        if caller is None or lease is None:
            return
        record_id = lease.record_id
        change = read_change(lambda: session.change(caller, record_id, self._identify))
        if change is not None:
            self._setting.engine.sync.run(follow(attempt, caller, change, new_owner()))

    def conclude(self, response: Response) -> Response:
        """Settle the attempt with the response that is about to be sent. Returns the response to send."""
        try:
            if self._core_response is not None:
                return self._restored(self._core_response, response)
            if self._plain is not None:
                bind_stream(self._plain, response)
            protection = self._protection
            if protection is None or protection.settled:
                return response
            return self._capture(protection, response)
        finally:
            self._unbind()

    def _restored(self, core: CoreResponse, response: Response) -> Response:
        """The stored response, without what ``after_request`` functions of the application have added (R-01)."""
        if REPLAYED not in core.headers or is_untouched(response, self._made, self._made_headers, core):
            return response
        return stand_in(self._setting.app, core, response, self._policy)

    def _capture(self, protection: Protection, response: Response) -> Response:
        capture = protection.capture
        capture.start(response.status_code, response_headers(response, self._request.environ))
        if response.status_code not in BODILESS:
            if not response.is_sequence:
                return self._stream(protection, response)
            capture.add(response.get_data())
        return self._sent(protection.finish(), response)

    def _stream(self, protection: Protection, response: Response) -> Response:
        raw = response.response
        source: Any = raw if response.direct_passthrough else response.iter_encoded()
        live = self._live = LiveBody(protection, self._body.close)
        live.attach(BoundIterable(protection.here, source, getattr(raw, "close", None)))
        response.response = live
        try:
            live.prepare()
        except BaseException:
            live.close()
            raise
        return self._sent(live.verdict, response)

    def _sent(self, verdict: Fate | CoreResponse | None, response: Response) -> Response:
        if isinstance(verdict, CoreResponse):
            return stand_in(self._setting.app, verdict, response, self._policy)
        if verdict is Fate.UNRECORDED:
            response.headers.add(*(part.decode("ascii") for part in UNRECORDED))
        echo = None if self._protection is None else self._protection.attempt.echo
        if echo is not None:
            response.headers.setdefault(*(part.decode("latin-1") for part in echo))
        return response

    def end(self, error: BaseException | None) -> None:
        """Abort an attempt that no response has settled (L-04): the request is over."""
        self._unbind()
        if self._live is not None:
            return  # the stream may outlive the request, and settles by itself
        protection = self._protection
        try:
            if protection is not None and not protection.settled:
                protection.abort(error or RuntimeError("the request ended without a response"))
        finally:
            self._body.close()

    def _unbind(self) -> None:
        # Not reset: that works only in the context where it was set, and a test client may end a request in another
        # one.
        if self._bound:
            self._bound = False
            running.set(self._previous)


def verified_user(app: Flask, here: Request) -> str | None:
    """Flask-Login's user if the application uses it, else the user that the server verified."""
    if not hasattr(app, "login_manager"):
        return here.remote_user or None
    login: Any = sys.modules.get("flask_login")
    if login is None or not login.current_user.is_authenticated:
        return None
    identity = login.current_user.get_id()
    return None if identity is None else str(identity)


def _may_refuse(view: Any, method: str) -> bool:
    """Whether the view has a mark that decorators may be above; those of a class may be in ``decorators``."""
    handler = getattr(getattr(view, "view_class", None), method.lower(), None)
    return has_decorators_above(view) or is_marked(handler)
