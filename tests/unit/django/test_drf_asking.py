"""Calling REST framework's authenticators before the view leaves no trace in the view's request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.handlers.asgi import ASGIHandler
from django.http import Http404
from django.test import override_settings
from django.test.client import encode_multipart
from django.utils.decorators import sync_and_async_middleware

from tests.django_project.calls import OURS, REPLAYED, AsgiCall, project
from tests.unit.django.test_drf_identity import (
    MULTIPART,
    SESSIONS,
    Charges,
    Send,
    Signed,
    _blocking,
    asked,
    both_chains,
    runs,
    user_of,
)

with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}):
    from rest_framework.authentication import BaseAuthentication
    from rest_framework.request import Request
    from rest_framework.response import Response


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Forget what an earlier test has noted."""
    runs.clear()
    asked.clear()


# The view's request is the same as without the middleware


@both_chains
def test_the_view_authenticates_for_itself(send: Send) -> None:
    """O-01: the view has its user, its auth, its authenticator and its parsed body."""
    with project(Charges.as_view()):
        send("old")
    assert runs == [("ann", "old", "Token", {"amount": 5})]
    assert asked == ["old", "old"]


@both_chains
@pytest.mark.parametrize("way", ["body", "data", "POST"])
@pytest.mark.parametrize("kind", ["json", "multipart"])
@pytest.mark.parametrize("spool", [10, 100_000], ids=["on disk", "in memory"])
def test_a_body_that_an_authenticator_has_read_is_unread_for_the_view(
    send: Send, way: str, kind: str, spool: int
) -> None:
    """R-08: however the authenticator read it, the view reads it again; the fingerprint covers all of it."""
    fields = {"amount": "5", "receipt": SimpleUploadedFile("a.txt", b"thanks")}
    body = {"data": encode_multipart("own", fields), "content_type": MULTIPART} if kind == "multipart" else {}
    options = {"IDEMPOTENCY_SPOOL_BYTES": spool}
    with project(Charges.as_view(authentication_classes=[Signed]), **options):
        sent: dict[str, Any] = {"headers": {"X-Way": way}, **body}
        assert [send(**sent).json()["run"] for _ in range(2)] == [1, 1]
        assert send(**{**sent, "data": b"{}", "content_type": "application/json"}).status_code == 422
    expected = {"amount": "5", "receipt": "thanks"} if kind == "multipart" else {"amount": 5}
    assert runs[0][3] == expected


class Marking(BaseAuthentication):
    """An authenticator that reads the stream the first time, and sets attributes on Django's request."""

    def authenticate(self, request: Request) -> tuple[Any, None]:
        plain = request._request
        asked.append((hasattr(plain, "user"), "marked" in plain.META, plain._read_started))
        plain.META["marked"] = "yes"
        if len(asked) == 1:
            plain.read(4)
        return user_of("ann"), None


class Reading(Charges):
    """A view that reads the rest of the stream."""

    authentication_classes = [Marking]

    def post(self, request: Request) -> Response:
        """Read."""
        runs.append(request._request.read())
        return Response("read")


def test_what_an_authenticator_leaves_behind_is_gone_for_the_view_under_wsgi() -> None:
    """O-01, R-08: its second call finds the same request as its first one."""
    with project(Reading.as_view()):
        _blocking(data="words")
    assert (runs, asked) == ([b'"words"'], [(False, False, False)] * 2)


def test_what_an_authenticator_leaves_behind_is_gone_for_the_view_under_asgi() -> None:
    """O-01, R-08: the stream is a file there, and is rewound."""
    with project(Reading.as_view()):
        asyncio.run(AsgiCall(b"words").run(ASGIHandler()))
    assert (runs, asked) == ([b"words"], [(False, False, False)] * 2)


class Digesting(BaseAuthentication):
    """An authenticator that reads ``request.body``, after which Django closes the stream."""

    def authenticate(self, request: Request) -> tuple[Any, None]:
        asked.append(request._request.body)
        return user_of("ann"), None


def test_a_body_asked_for_by_an_authenticator_does_not_close_the_servers_file() -> None:
    """R-08: the fingerprint and the view read it again."""
    with project(Reading.as_view(authentication_classes=[Digesting])):
        asyncio.run(AsgiCall(b"words").run(ASGIHandler()))
    assert (runs, asked) == ([b"words"], [b"words"] * 2)


# Other effects of authenticators


class Refusing(BaseAuthentication):
    """An authenticator that raises an exception of Django itself."""

    error: Exception = Http404()

    def authenticate(self, request: Request) -> Any:
        asked.append("refusing")
        raise self.error


@both_chains
@pytest.mark.parametrize(("error", "status"), [(Http404("nobody"), 404), (PermissionDenied("no"), 403)])
def test_a_refusal_in_djangos_own_words_is_left_to_the_view(
    send: Send, error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authenticator runs twice, and the view's response is sent; no view code runs, for a retry neither."""
    monkeypatch.setattr(Refusing, "error", error)
    with project(Charges.as_view(authentication_classes=[Refusing])):
        assert send().status_code == status
    assert (runs, asked) == ([], ["refusing"] * 2)


class Outer(BaseAuthentication):
    """An authenticator that reads Django's own user, as REST framework's session authentication does."""

    def authenticate(self, request: Request) -> Any:
        asked.append((type(request._request.user).__name__, request._request.session.accessed))
        return user_of("ann"), None


@both_chains
def test_an_authenticator_that_looks_at_djangos_user_loads_no_empty_session(send: Send) -> None:
    """Before the view it finds an anonymous user, and the session is unchanged."""
    with project(Charges.as_view(authentication_classes=[Outer]), MIDDLEWARE=[*SESSIONS, OURS]):
        assert send().status_code == 201
    assert asked[0] == ("AnonymousUser", False)


class Uploading(BaseAuthentication):
    """An authenticator that parses the uploads to verify the caller, and keeps the file."""

    def authenticate(self, request: Request) -> tuple[Any, None]:
        asked.append(request._request.FILES["receipt"].file)
        return user_of("ann"), None


@both_chains
def test_uploads_that_only_the_copy_has_parsed_are_closed(send: Send) -> None:
    """R-09: the copy has a file of its own, which is closed before the view runs; the view's file is open while it
    reads.
    """
    body = encode_multipart("own", {"receipt": SimpleUploadedFile("a.txt", b"thanks")})
    with (
        project(Charges.as_view(authentication_classes=[Uploading])),
        override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=0),
    ):
        assert send(data=body, content_type=MULTIPART).status_code == 201
    ahead, in_view = asked
    assert ahead is not in_view
    assert ahead.closed
    assert runs[0][3] == {"receipt": "thanks"}


@both_chains
def test_a_body_that_was_read_before_is_lent_from_memory(send: Send) -> None:
    """R-08: an outer middleware has read ``request.body``, so no stream is left."""
    with project(Charges.as_view(authentication_classes=[Signed]), MIDDLEWARE=[f"{__name__}.reads_body", OURS]):
        responses = [send(headers={"X-Way": "data"}) for _ in range(2)]
    assert responses[1][REPLAYED] == "true"
    assert asked[0] == {"amount": 5}
    assert runs[0][3] == {"amount": 5}


@sync_and_async_middleware
def reads_body(get_response: Any) -> Any:
    """Middleware that reads ``request.body``."""
    if iscoroutinefunction(get_response):

        async def awaited(request: Any) -> Any:
            assert request.body
            return await get_response(request)

        return awaited

    def blocking(request: Any) -> Any:
        assert request.body
        return get_response(request)

    return blocking
