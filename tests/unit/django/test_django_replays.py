"""A replay as a Django response: what outer middleware and test clients can do with it."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import json
import logging
import pickle  # noqa: TID251 (what caches of Django do with a response)
from collections.abc import Callable
from typing import Any

import pytest
from django.core.checks import run_checks
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect, HttpResponseRedirect, JsonResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, override_settings
from django.utils.decorators import sync_and_async_middleware

from open_idempotency._core.models import Response as CoreResponse
from open_idempotency._core.rendering import replayed
from open_idempotency._core.stored_response import NOTE, decode_response, encode_response
from open_idempotency.django import messages
from tests.django_project.calls import KEY, OURS, REPLAYED, post, project

with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None, "DEFAULT_AUTHENTICATION_CLASSES": []}):
    from rest_framework.decorators import api_view, renderer_classes
    from rest_framework.renderers import JSONRenderer
    from rest_framework.response import Response

#: what the note is called where it is stored
NAME = NOTE.decode("ascii")
Seen = list[Any]
_seen: Seen = []
_look: Callable[[Any], Any]


@sync_and_async_middleware
def looking(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """An outer middleware that calls the test's function with each response."""
    if asyncio.iscoroutinefunction(get_response):

        async def awaited(request: HttpRequest) -> Any:
            response = await get_response(request)
            _seen.append(_look(response))
            return response

        return awaited

    def blocking(request: HttpRequest) -> Any:
        response = get_response(request)
        _seen.append(_look(response))
        return response

    return blocking


def _twice(view: Any, look: Callable[[Any], Any], client: Callable[[], Any] = Client, **options: Any) -> Any:
    """What the middleware saw on the first response and on the replay, and both responses."""
    global _look
    _look = look
    _seen.clear()
    responses = []
    with project(view, **{"MIDDLEWARE": [f"{__name__}.looking", OURS], **options}):
        for _ in range(2):
            sent = post(client(raise_request_exception=True))
            responses.append(asyncio.run(sent) if client is AsyncClient else sent)
    assert [each.headers.get(REPLAYED) for each in responses] == [None, "true"]
    assert not any(NAME in each.headers for each in responses)
    return _seen[0], _seen[1], responses


@api_view(["POST"])
@renderer_classes([JSONRenderer])
def charge(request: Any) -> Response:
    """A view whose data have types that JSON lacks."""
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
    return Response({"id": 1, "name": "Zoë", "price": decimal.Decimal("1.10"), "when": when}, 201)


class Loud(JSONRenderer):
    """A renderer whose body, read as JSON, differs from the data of the response, as camel-case renderers do."""

    def render(self, data: Any, accepted_media_type: Any = None, renderer_context: Any = None) -> bytes:
        """See REST framework."""
        rows = {name.upper(): value for name, value in data.items()} if isinstance(data, dict) else {"ROWS": data}
        return json.dumps(rows).encode()


@api_view(["POST"])
@renderer_classes([Loud])
def loud(request: Any) -> Response:
    """A view with another renderer."""
    return Response({"id": 1}, 201)


@api_view(["POST"])
def empty(request: Any) -> Response:
    """A view whose response has no body."""
    return Response(status=204)


@api_view(["POST"])
def plain(request: Any) -> HttpResponse:
    """A view of REST framework that returns a Django response."""
    return JsonResponse({"id": 1})


def moved(request: Any) -> HttpResponse:
    """A view that redirects."""
    return HttpResponseRedirect("/elsewhere")


def _wrap(response: Any) -> Any:
    """The usual envelope of REST framework's projects."""
    if hasattr(response, "data"):
        response.data = {"ok": response.status_code < 400, "data": response.data}
        response.content = response.rendered_content
    return response.content


def _render_again(response: Any) -> Any:
    """The other usual envelope, which renders the response again."""
    if isinstance(response, Response):
        response.data = [response.status_code, response.data]
        response._is_rendered = False
        response.render()
    return response.content


@pytest.mark.parametrize("client", [Client, AsyncClient], ids=["wsgi", "asgi"])
@pytest.mark.parametrize("look", [_wrap, _render_again])
@pytest.mark.parametrize("view", [charge, empty, plain, loud])
def test_an_envelope_outside_wraps_a_replay_as_it_wrapped_the_first_response(view: Any, look: Any, client: Any) -> None:
    """O-29: outer middleware that changes ``response.data`` works for replays."""
    first, again, responses = _twice(view, look, client)
    assert again == first
    assert responses[1].content == responses[0].content
    assert responses[1].get("Content-Length") in (None, str(len(responses[1].content)))


@pytest.mark.parametrize("client", [Client, AsyncClient], ids=["wsgi", "asgi"])
@pytest.mark.parametrize("view", [charge, plain, moved])
def test_a_middleware_outside_may_pickle_a_response_into_a_cache(view: Any, client: Any) -> None:
    """O-29: the copy has the same status, body and data. It belongs to no request, so closing it closes nothing."""

    def cached(response: Any) -> Any:
        copy = pickle.loads(pickle.dumps(response))
        copy.close()
        return copy.status_code, copy.content, vars(copy).get("data"), getattr(copy, "url", None)

    first, again, responses = _twice(view, cached, client)
    assert again[:2] == first[:2] == (responses[0].status_code, responses[0].content)
    assert (again[2] is None) == (first[2] is None)
    assert again[3] == first[3]


def test_a_replay_is_a_response_of_rest_framework_with_the_renderer_that_the_view_chose() -> None:
    """O-29."""

    def look(response: Any) -> Any:
        context = response.renderer_context
        return (
            isinstance(response, Response),
            type(response.accepted_renderer),
            response.accepted_media_type,
            type(context["view"]).__name__,
            context["request"].method,
            response.exception,
            response.is_rendered,
            json.loads(json.dumps(response.data, default=str))["id"],
        )

    first, again, _ = _twice(charge, look)
    assert again == first
    assert again[0] is True


def test_a_middleware_inside_may_use_the_data_of_a_replay_and_changes_nothing() -> None:
    """R-01: what it adds on the way out is in the stored response already."""
    listed = [OURS, f"{__name__}.looking"]
    first, again, responses = _twice(charge, _wrap, MIDDLEWARE=listed)
    assert json.loads(first)["data"]["id"] == json.loads(again)["data"]["data"]["id"] == 1
    assert responses[1].content == responses[0].content


@pytest.mark.parametrize("cls", [HttpResponseRedirect, HttpResponsePermanentRedirect])
def test_the_replay_of_a_redirect_has_its_url(cls: Any) -> None:
    """O-29: test clients that follow redirects read ``url``."""

    def look(response: Any) -> Any:
        return response.url, response.status_code, isinstance(response, cls)

    first, again, _ = _twice(lambda request: cls("/done?id=1"), look)
    assert again == first == ("/done?id=1", cls.status_code, True)


def test_a_test_client_reads_the_json_of_a_replay_and_follows_its_redirect() -> None:
    """O-29."""
    with project(lambda request: JsonResponse({"id": 1}), lambda request: HttpResponseRedirect("/0")):
        assert [post(Client()).json() for _ in range(2)] == [{"id": 1}] * 2
        client = Client()
        headers = {"Idempotency-Key": KEY[::-1]}
        chains = [client.post("/1", headers=headers, follow=True).redirect_chain for _ in range(2)]
    assert chains == [[("/0", 302)]] * 2


def test_attributes_that_a_view_has_set_are_set_on_a_replay() -> None:
    """O-29: such as the attribute that exempts a response from Django's frame options."""

    def view(request: HttpRequest) -> HttpResponse:
        response: Any = HttpResponse("framed")
        response.xframe_options_exempt = True
        return response

    frames = "django.middleware.clickjacking.XFrameOptionsMiddleware"
    with project(view, MIDDLEWARE=[frames, OURS]):
        assert [post(Client()).get("X-Frame-Options") for _ in range(2)] == [None, None]


def _template(request: HttpRequest) -> HttpResponse:
    return TemplateResponse(request, engines["django"].from_string("{{ name }}"), {"name": "Zoë"})


def test_what_a_replay_cannot_have_is_missing_and_the_code_that_asks_is_named_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-29: the context of a template, and its name."""
    monkeypatch.setattr(messages, "_warned", set())

    def look(response: Any) -> Any:
        return [hasattr(response, "context_data") for _ in range(3)], hasattr(response, "unheard_of")

    with caplog.at_level(logging.WARNING, "open_idempotency"):
        first, again, responses = _twice(_template, look)
    assert (first, again) == (([True] * 3, False), ([False] * 3, False))
    assert responses[1].content == "Zoë".encode()
    (record,) = caplog.records
    said = record.getMessage()
    assert f"{__name__}.<listcomp>" in said or f"{__name__}.look" in said
    assert "response.context_data" in said
    assert "django.template.response.TemplateResponse" in said


def test_no_text_of_a_redacted_response_is_stored_beside_it() -> None:
    """O-29: a note may contain text of the body."""

    def view(request: HttpRequest) -> HttpResponse:
        response: Any = HttpResponse("secret")
        response.secret, response.number, response.flag = "4111", 4111, True
        return response

    def redact(response: Any) -> Any:
        assert b"4111" not in b"".join(value for _, value in response.headers)
        return response

    first, again, _ = _twice(
        view, lambda response: (hasattr(response, "secret"), response.flag), IDEMPOTENCY_REDACT=redact
    )
    assert (first, again) == ((True, True), (False, True))
    with project(loud, IDEMPOTENCY_REDACT=redact):
        assert [hasattr(post(Client()), "data") for _ in range(2)] == [True, False]


def test_a_note_is_bounded() -> None:
    """Bad input: data that are too long to be stored twice are missing on the replay; the body is complete."""

    @api_view(["POST"])
    @renderer_classes([Loud])
    def long(request: Any) -> Response:
        return Response({"id": "x" * 9000})

    first, again, responses = _twice(long, lambda response: hasattr(response, "data"))
    assert (first, again) == (True, False)
    assert responses[1].content == responses[0].content


def test_a_view_cannot_forge_a_note() -> None:
    """Bad input: a view copied the header from another service's response."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("copied", headers={NAME: '{"kept": {"status_code": 500}}'})

    with project(view):
        _, again = post(Client()), post(Client())
    assert (again.status_code, again.content, NAME in again.headers) == (200, b"copied", False)


def test_no_adapter_sends_a_note() -> None:
    """O-29: a replay has no such header, also where another framework's adapter reads the record."""
    frame = encode_response(CoreResponse(200, [(b"x-own", b"1")], b"body", note=b"{}"))
    again = replayed(decode_response(frame))
    assert (again.note, dict(again.headers).keys()) == (b"{}", {b"x-own", b"idempotent-replayed", b"content-length"})


def test_a_plain_response_is_stored_without_a_note() -> None:
    """Responses that do not need a note cost no bytes for it."""
    assert messages.take_note(JsonResponse({}), redacted=False) == b""
    assert messages.take_note(HttpResponseRedirect("/0"), redacted=False) == b""


def test_the_length_of_a_replay_whose_body_middleware_changes_is_counted_anew() -> None:
    """O-29: Django gives a first response its length later, so such middleware does not correct one."""

    def look(response: Any) -> None:
        response.content += b" more"

    _, _, responses = _twice(lambda request: HttpResponse("some"), look)
    assert [each.content for each in responses] == [b"some more"] * 2
    assert responses[1]["Content-Length"] == "9"


class Context:
    """A project's middleware that reads the context of templates."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        """Mark the response if it has a context."""
        response = self.get_response(request)
        if getattr(response, "context_data", None):
            response["X-Titled"] = "yes"
        return response


class InTime:
    """A middleware with a hook that runs before the view's response is rendered."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        """Call the next layer."""
        return self.get_response(request)

    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        """Add to the context."""
        response.context_data = {**(response.context_data or {}), "name": "Ada"}
        return response


def test_a_middleware_outside_that_asks_for_what_a_replay_lacks_is_reported() -> None:
    """O-29: W011 names it, and its right position."""
    with project(_template, MIDDLEWARE=[f"{__name__}.InTime", f"{__name__}.Context", OURS]):
        (message,) = [each for each in run_checks() if (each.id or "").startswith("open_idempotency.")]
    assert message.id == "open_idempotency.W011"
    assert f"{__name__}.Context asks for response.context_data" in message.msg
    assert f'list "{__name__}.Context" behind' in str(message.hint)


def test_inside_the_same_middleware_is_right_and_its_work_is_stored() -> None:
    """O-29: a hook for unrendered responses is right on either side."""
    listed = [f"{__name__}.InTime", OURS, f"{__name__}.Context"]
    with project(_template, MIDDLEWARE=listed):
        assert [each.id for each in run_checks() if (each.id or "").startswith("open_idempotency.")] == []
        responses = [post(Client()) for _ in range(2)]
    assert [(each["X-Titled"], each.content) for each in responses] == [("yes", b"Ada")] * 2
