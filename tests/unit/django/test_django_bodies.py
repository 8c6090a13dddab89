"""Request bodies in Django: read for the fingerprint, and still complete for the view, whatever else reads them."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.request import UnreadablePostError
from django.test import Client, RequestFactory
from django.test.client import encode_multipart

from open_idempotency.django import exempt, idempotent
from tests.django_project.calls import KEY, OURS, REPLAYED, AsgiCall, post, project

CSRF = "django.middleware.csrf.CsrfViewMiddleware"
TOKEN = "t" * 32
BIG = 300_000


def _form(client: Client, content: bytes = b"x" * BIG, boundary: str = "BoUnDaRy", **extra: Any) -> Any:
    fields = {"csrfmiddlewaretoken": TOKEN, "amount": "5", "file": SimpleUploadedFile("a.bin", content)}
    data = encode_multipart(boundary, fields)
    return post(client, data=data, content_type=f"multipart/form-data; boundary={boundary}", **extra)


def _show_form(request: HttpRequest) -> HttpResponse:
    upload = request.FILES["file"]
    return JsonResponse({"amount": request.POST["amount"], "name": upload.name, "size": len(upload.read())})


@pytest.mark.parametrize("spool", [1000, 10 * BIG], ids=["on disk", "in memory"])
def test_an_upload_reaches_the_view_after_the_claim(spool: int) -> None:
    """R-09, R-08: ``request.POST`` and ``request.FILES`` work."""
    with project(_show_form, IDEMPOTENCY_SPOOL_BYTES=spool):
        assert _form(Client()).json() == {"amount": "5", "name": "a.bin", "size": BIG}


def test_the_same_upload_with_another_boundary_is_the_same_request() -> None:
    """A multipart body is compared by its parts; another file is another request."""
    with project(_show_form):
        _form(Client())
        assert _form(Client(), boundary="another")[REPLAYED] == "true"
        assert _form(Client(), content=b"y").status_code == 422


@pytest.mark.parametrize("listed", [[CSRF, OURS], [OURS, CSRF]], ids=["before", "behind"])
@pytest.mark.parametrize("spool", [1000, 10 * BIG], ids=["on disk", "in memory"])
def test_a_form_whose_csrf_token_was_read_first_reaches_the_view(listed: list[str], spool: int) -> None:
    """R-08: CSRF protection parses the form in a view hook of its own."""
    with project(_show_form, MIDDLEWARE=listed, IDEMPOTENCY_SPOOL_BYTES=spool):
        client = Client(enforce_csrf_checks=True)
        client.cookies["csrftoken"] = TOKEN
        assert _form(client).json() == {"amount": "5", "name": "a.bin", "size": BIG}
        assert _form(client)[REPLAYED] == "true"
        assert _form(client, content=b"y").status_code == 422


def test_a_form_over_the_limit_that_csrf_protection_has_read_is_refused() -> None:
    """O-07: the request never runs unprotected."""
    with project(_show_form, MIDDLEWARE=[CSRF, OURS], IDEMPOTENCY_MAX_REQUEST_BYTES=1000) as backend:
        client = Client(enforce_csrf_checks=True)
        client.cookies["csrftoken"] = TOKEN
        assert _form(client).status_code == 413
    assert backend.verbs == []


def test_a_url_encoded_form_reaches_the_view() -> None:
    """R-08: the view reads ``request.POST``."""
    with project(lambda request: HttpResponse(request.POST["amount"] + request.body.decode())):
        response = post(Client(), data="amount=5", content_type="application/x-www-form-urlencoded")
    assert response.content == b"5amount=5"


def test_a_view_that_reads_the_stream_itself_gets_a_body_over_djangos_memory_limit() -> None:
    """R-09: DATA_UPLOAD_MAX_MEMORY_SIZE limits ``request.body`` only, and still does."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(sum(len(line) for line in request)))

    with project(view, lambda request: HttpResponse(request.body), DATA_UPLOAD_MAX_MEMORY_SIZE=1000):
        client = Client(raise_request_exception=False)
        body = b"line\n" * 1000
        assert post(client, data=body, content_type="text/plain").content == b"5000"
        assert post(client, "/1", data=body, content_type="text/plain", key=KEY + "1").status_code == 400


def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    """O-07."""

    class Unread(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            raise AssertionError("the body was read")

    with project(_show_form, IDEMPOTENCY_MAX_REQUEST_BYTES=10):
        response = post(Client(), data=b"x" * 11, content_type="text/plain", **{"wsgi.input": Unread()})
    assert response.status_code == 413


def test_a_view_can_raise_the_limit_for_itself() -> None:
    """A rule may set any policy field."""

    @idempotent(max_request_bytes=2 * BIG)
    def view(request: HttpRequest) -> HttpResponse:
        return _show_form(request)

    with project(view, IDEMPOTENCY_MAX_REQUEST_BYTES=BIG // 2):
        assert _form(Client()).status_code == 200


def test_a_view_can_lower_the_limit_for_itself() -> None:
    """O-07: also for a body that was read before the view was known."""

    @idempotent(max_request_bytes=BIG // 2)
    def view(request: HttpRequest) -> HttpResponse:
        return _show_form(request)

    with project(view, MIDDLEWARE=[OURS, f"{__name__}.reading_body"]):
        assert _form(Client()).status_code == 413


def test_half_a_request_claims_nothing() -> None:
    """The client left during its upload; Django raises the same error as for any other view."""
    with project(_show_form) as backend, pytest.raises(UnreadablePostError):
        post(
            Client(), data=b"half", content_type="text/plain", CONTENT_LENGTH="8", **{"wsgi.input": io.BytesIO(b"half")}
        )
    assert backend.verbs == []


def reading_body(get_response: Any) -> Any:
    """A middleware that reads the body."""

    def middleware(request: HttpRequest) -> Any:
        assert request.body
        return get_response(request)

    return middleware


def reading_form(get_response: Any) -> Any:
    """A middleware that parses the form."""

    def middleware(request: HttpRequest) -> Any:
        assert request.POST
        return get_response(request)

    return middleware


@pytest.mark.parametrize("reader", ["reading_body", "reading_form"])
def test_inner_middleware_may_read_the_body_in_any_way(reader: str) -> None:
    """R-08: the body is buffered before."""
    with project(_show_form, MIDDLEWARE=[OURS, f"{__name__}.{reader}"]):
        assert _form(Client()).json()["size"] == BIG
        assert _form(Client())[REPLAYED] == "true"
        assert _form(Client(), content=b"y").status_code == 422


@pytest.mark.parametrize("reader", ["reading_body", "reading_form"])
@pytest.mark.parametrize("spool", [1000, 10 * BIG], ids=["on disk", "in memory"])
def test_what_was_read_of_asgi_handlers_file_is_there_for_the_claim_and_the_view(reader: str, spool: int) -> None:
    """R-08, R-09: the same under ASGI, where the body is a file already."""

    async def send(content: bytes) -> AsgiCall:
        data = encode_multipart("own", {"amount": "5", "file": SimpleUploadedFile("a.bin", content)})
        call = AsgiCall(data, b"multipart/form-data; boundary=own")
        await call.run(handler)
        return call

    async def scenario() -> None:
        assert json.loads((await send(b"x" * BIG)).body)["size"] == BIG
        assert json.loads((await send(b"x" * BIG)).body)["size"] == BIG
        assert (await send(b"y")).sent[0]["status"] == 422

    listed = [OURS, f"{__name__}.{reader}"]
    with project(_show_form, MIDDLEWARE=listed, IDEMPOTENCY_SPOOL_BYTES=spool):
        handler = ASGIHandler()
        asyncio.run(scenario())


class PeekingMiddleware:
    """A middleware whose view hook reads only the first bytes of the stream."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *args: Any) -> None:
        """Read the first bytes."""
        assert request.read(3) == b"abc"


@pytest.mark.parametrize("spool", [1, 1000], ids=["on disk", "in memory"])
def test_a_view_goes_on_reading_where_others_stopped(spool: int) -> None:
    """R-08: the fingerprint covers the whole body, and does not move the position of any reader."""
    listed = [f"{__name__}.PeekingMiddleware", OURS]
    with project(lambda request: HttpResponse(request.read()), MIDDLEWARE=listed, IDEMPOTENCY_SPOOL_BYTES=spool):
        assert post(Client(), data=b"abcdef", content_type="text/plain").content == b"def"
        assert post(Client(), data=b"abcxyz", content_type="text/plain").status_code == 422


def test_outer_middleware_may_read_request_body() -> None:
    """R-08: Django caches it."""
    with project(_show_form, MIDDLEWARE=[f"{__name__}.reading_body", OURS]):
        _form(Client())
        assert _form(Client())[REPLAYED] == "true"


def test_outer_middleware_that_leaves_no_bytes_is_named_as_the_fault() -> None:
    """I8: the request does not run unprotected."""
    calls: list[int] = []
    with (
        project(lambda request: calls.append(1), MIDDLEWARE=[f"{__name__}.reading_form", OURS]) as backend,
        pytest.raises(RuntimeError, match="list IdempotencyMiddleware before"),
    ):
        _form(Client())
    assert calls == backend.verbs == []


@pytest.mark.parametrize(
    ("decorate", "key"), [(exempt, KEY), (lambda view: view, None)], ids=["exempt", "without a key"]
)
def test_what_is_not_protected_reads_from_the_servers_own_stream(decorate: Any, key: str | None) -> None:
    """The body of an unprotected request is not buffered."""
    streams: list[Any] = []

    def view(request: Any) -> HttpResponse:
        streams.append(type(request._stream))
        return HttpResponse(request.body)

    with project(decorate(view)):
        assert post(Client(), data=b"raw", content_type="text/plain", key=key).content == b"raw"
    assert streams == [type(RequestFactory().post("/")._stream)]
