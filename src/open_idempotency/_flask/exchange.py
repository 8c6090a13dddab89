"""A covered request of a Flask application: ``Exchange`` for one with a key, ``Plain`` for one that runs without a
record.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, NamedTuple

from flask import Flask, Request, Response, abort
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.caller_changes import follow, read_change
from open_idempotency._core.requests import Headers, Identity
from open_idempotency._core.requests import Response as CoreResponse
from open_idempotency._core.settlement import Fate
from open_idempotency._core.stored_response import BODILESS, REPLAYED, UNRECORDED
from open_idempotency._engine.bodies import RequestBody
from open_idempotency._engine.current import Running, running
from open_idempotency._engine.engine import Engine, new_owner
from open_idempotency._flask import responses
from open_idempotency._flask.responses import bind_stream
from open_idempotency._flask.sessions import SessionTrace, read_session
from open_idempotency._routes.marks import call_to_mark, has_decorators_above, is_marked, reveals_a_record
from open_idempotency._wsgi.environ import (
    MARK,
    BodyIncomplete,
    give_body,
    hide_file_wrapper,
    read_body,
    read_request,
)
from open_idempotency._wsgi.exchange import BoundIterable, LiveBody, Protection
from open_idempotency.exceptions import BodyTooLarge, IdempotencyError
from open_idempotency.policy import IdempotencyPolicy


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
        """None: nothing is recorded, so no error can come after that."""

    def receive(self) -> None:
        """Nothing: the body is left unread."""

    def begin(self) -> None:
        """Bind the context."""
        self._request.environ[MARK] = self._here[0]
        self._previous = running.get()
        self._bound = True
        running.set(self._here)

    def viewed(self) -> None:
        """Nothing: without a record there is none for a retry to find."""

    def overtaken(self, error: IdempotencyError) -> Response:
        """Raise the error: without a record no stored response replaces it."""
        raise error

    def conclude(self, response: Response) -> Response:
        """Return the response as it is; its stream goes on under its own request."""
        if self._bound:
            bind_stream(self._here, response)
        self._unbind()
        return response

    def end(self, error: BaseException | None) -> None:
        """Unbind the context: the request is over."""
        self._unbind()

    def _unbind(self) -> None:
        # Not reset: that only works in the context where it was set, and a test client may end a request elsewhere.
        if self._bound:
            self._bound = False
            running.set(self._previous)


class Setting(NamedTuple):
    """What the requests of one application share."""

    held: weakref.ReferenceType[Flask]
    engine: Engine

    @property
    def app(self) -> Flask:
        """The application, which lives as long as a request of it."""
        app = self.held()
        assert app is not None, "the application is gone, and a method of it was called"
        return app


class Exchange:
    """One covered request. Flask's stages call ``receive``, ``begin``, ``conclude`` and ``end``, in this order."""

    __slots__ = (
        "_body", "_bound", "_core_response", "_key_headers", "_live", "_made", "_made_headers", "_policy", "_previous",
        "_protection", "_request", "_session", "_setting", "_too_large",
    )  # fmt: skip

    def __init__(self, setting: Setting, request: Request, policy: IdempotencyPolicy, key_headers: Headers) -> None:
        self._setting = setting
        self._request = request
        self._policy = policy
        self._key_headers = key_headers
        self._body = RequestBody(policy)
        self._too_large: Exception | None = None
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
        """The attempt that this request is; None where the claim was refused, or is not made yet."""
        return None if self._protection is None else self._protection.attempt

    # Before the view

    def receive(self) -> None:
        """Read the body of a request with a key before other functions do, and put it back for them.

        It has to come first, since a form that a ``before_request`` function has parsed has no raw bytes any more.
        """
        if not self._key_headers:
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
        read_body(request.environ, self._body)
        if limit is not None and self._body.size > limit:
            raise RequestEntityTooLarge
        give_body(request.environ, self._body)

    def begin(self) -> Response | None:
        """Claim the request and bind its context. Returns the response to send instead of running the view, or None."""
        admission = self._admit()
        if isinstance(admission, CoreResponse):
            return self._respond_if_permitted(admission)
        self._protection = protection = Protection(self._setting.engine, admission)
        environ = self._request.environ
        environ[MARK] = admission
        hide_file_wrapper(environ)
        instead = protection.begin()
        if instead is not None:
            return self._respond_if_permitted(instead)
        self._previous = running.get()
        self._bound = True
        running.set(protection.here)
        return None

    def _admit(self) -> Attempt | CoreResponse:
        request, source = self._request, self._request.environ["wsgi.input"]
        intake = Intake(
            read_request(request.environ, request),
            self._key_headers,
            new_owner(),
            self._identify,
            self._received,
            self._setting.engine.advice,
            self._session,
            renders=self._renders,
        )
        # The fingerprint reads the same file as the view, and other code may have begun to read it.
        offset = source.tell() if self._body.spooled else None
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
        """Whether Flask, or one of the application's error handlers, makes a response of this error (O-20).

        A handler for every ``Exception`` does not count: it makes a 500.
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
        self._made = made = responses.make_response(self._setting.app, core)
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
        """The view noticed a later attempt (L-03), or is in doubt (S-04): the response that replaces the error, or the
        error.
        """
        protection = self._protection
        verdict = protection.abort(error) if protection is not None and not protection.settled else None
        if isinstance(verdict, CoreResponse):
            return self._respond(verdict)
        raise error

    # After the view

    def viewed(self) -> None:
        """The view has run. If it has changed the caller, let a retry find the record all the same (O-14).

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
            protection = self._protection
            if protection is None or protection.settled:
                return response
            return self._capture(protection, response)
        finally:
            self._unbind()

    def _restored(self, core: CoreResponse, response: Response) -> Response:
        """A replay is the stored response, whatever the application's ``after_request`` functions add to it (R-01)."""
        if REPLAYED not in core.headers or responses.is_untouched(response, self._made, self._made_headers, core):
            return response
        return responses.stand_in(self._setting.app, core, response, self._policy)

    def _capture(self, protection: Protection, response: Response) -> Response:
        capture = protection.capture
        capture.start(response.status_code, responses.response_headers(response, self._request.environ))
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
            return responses.stand_in(self._setting.app, verdict, response, self._policy)
        if verdict is Fate.UNRECORDED:
            response.headers.add(*(part.decode("ascii") for part in UNRECORDED))
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
        # Not reset: that only works in the context where it was set, and a test client may end a request elsewhere.
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
    """Whether the view has a mark, and decorators may be above it; a class may also have ``decorators``."""
    handler = getattr(getattr(view, "view_class", None), method.lower(), None)
    return has_decorators_above(view) or is_marked(handler)
