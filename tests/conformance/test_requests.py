"""The requests that the runner sends: no more than announced, with random keys, and with odd bytes unchanged."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_idempotency.conformance.http import CouldNotRun, Target, examine
from open_idempotency.conformance.http.observations import LIMITS
from open_idempotency.conformance.http.target import Call, Client, Exchange
from tests.conformance import servers, wrong_keys
from tests.conformance.looking import examined, options
from tests.conformance.shop import Shop


@pytest.mark.parametrize("shop", [Shop, wrong_keys.RefusesStrings, wrong_keys.RunsMalformed])
@pytest.mark.parametrize("required", [True, False])
def test_no_more_requests_are_sent_than_announced(shop: type[Shop], required: bool) -> None:
    """The table in the help is an upper bound for each scene."""
    sent = Counter(each.group for each in examined(shop(), required=required).exchanges)
    assert set(sent) == set(LIMITS)
    assert all(sent[scene] <= LIMITS[scene] for scene in sent)


def test_the_bound_is_enforced() -> None:
    """A request above the bound is not sent."""
    call = Call("POST", "http://127.0.0.1:1/", (), b"")
    with pytest.raises(RuntimeError, match="more requests than announced"):
        Client({"scene": 0}, 1).send("scene", call)


def _keys(exchanges: tuple[Exchange, ...]) -> set[bytes]:
    return {value for each in exchanges for name, value in each.call.headers if name.lower() == b"idempotency-key"}


def test_keys_are_new_in_each_run() -> None:
    """No run finds the records of another, except for the empty key."""
    one, other = (examined(Shop()).exchanges for _ in range(2))
    assert _keys(one) & _keys(other) <= {b"", b'""'}


def test_every_request_has_the_given_headers() -> None:
    """``--header``, ``--content-type`` and ``--method`` apply to every request; the other caller replaces its own
    headers.
    """
    headers = (("Authorization", "Bearer a"), ("X-Trace", "on"))
    exchanges = examined(Shop(), headers=headers, content_type="text/plain", method="PATCH").exchanges
    for each in exchanges:
        sent = dict(each.call.headers)
        caller = b"Bearer b" if each.group == "--other-caller" else b"Bearer a"
        assert (each.call.method, sent[b"Authorization"], sent[b"X-Trace"]) == ("PATCH", caller, b"on")
        assert sent[b"Content-Type"] == b"text/plain"


def test_another_header_name() -> None:
    """``--header-name`` names the header that the server reads."""

    class Renamed(Shop):
        def __call__(self, environ: dict[str, object], start_response: object) -> object:
            environ.pop("HTTP_IDEMPOTENCY_KEY", None)
            if "HTTP_X_REQUEST_KEY" in environ:
                environ["HTTP_IDEMPOTENCY_KEY"] = environ["HTTP_X_REQUEST_KEY"]
            return super().__call__(environ, start_response)

    assert examined(Renamed(), header_name="X-Request-Key").passed


def test_over_tls(tmp_path: Path) -> None:
    """https, with a certificate that ``--ca-file`` trusts."""
    trusted = tmp_path / "authority.pem"
    servers.AUTHORITY.cert_pem.write_to_path(trusted)
    with servers.wsgi(Shop(), tls=True) as url:
        assert examine(Target(**options(url, ca_file=str(trusted)))).passed


def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    """Nothing is sent to a server with an untrusted certificate."""
    shop = Shop()
    with servers.wsgi(shop, tls=True) as url, pytest.raises(CouldNotRun, match="CERTIFICATE_VERIFY_FAILED"):
        examine(Target(**options(url)))
    assert shop.runs == 0


@pytest.fixture
def raw() -> Iterator[tuple[str, list[bytes]]]:
    """A server of one connection that stores the bytes it gets; its address and the bytes."""
    got: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(servers.SECONDS)
            got.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(servers.SECONDS)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", got
        thread.join(servers.SECONDS)


def test_odd_bytes_and_two_lines_go_out_as_they_are(raw: tuple[str, list[bytes]]) -> None:
    """No layer between the statement and the socket changes the header."""
    url, got = raw
    call = Target(url=f"{url}/a?b=1").call((b'"\xc3\xa9', b"\x01 ", b""))
    response = Client({"scene": 1}, servers.SECONDS).send("scene", call)
    assert response.status == 204
    (request,) = got
    assert request.startswith(b"POST /a?b=1 HTTP/1.1\r\n")
    lines = request.split(b"\r\n")
    assert [line for line in lines if line.startswith(b"Idempotency-Key")] == [
        b'Idempotency-Key: "\xc3\xa9',
        b"Idempotency-Key: \x01 ",
        b"Idempotency-Key: ",
    ]


def test_an_endless_response_is_cut() -> None:
    """Only a bounded part of an endless stream is read."""

    def endless(environ: dict[str, object], start_response: object) -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            yield b"x" * 65536

    with servers.wsgi(endless) as url:
        response = Client({"scene": 1}, servers.SECONDS).send("scene", Target(url=url).call(()))
    assert response.status == 200
    assert 4 * 1024 * 1024 <= len(response.body) < 5 * 1024 * 1024


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://localhost/"},
        {"url": "localhost:8000"},
        {"url": "http://localhost:port/"},
        {"url": "http://localhost/a b"},
        {"slow_url": "/slow"},
        {"method": "PO ST"},
        {"header_name": "a:b"},
        {"headers": (("X", "a\r\nb"),)},
        {"headers": (("Idempotency-Key", "mine"),)},
        {"headers": (("Content-Length", "1"),)},
        {"other_data": b"{}"},
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"skip": frozenset({"retry-statsu"})},
    ],
    ids=str,
)
def test_what_cannot_be_sent_is_refused_before_anything_is(wrong: dict[str, object]) -> None:
    """Wrong options are reported before the first request."""
    with pytest.raises(CouldNotRun):
        examine(Target(**{"url": "http://127.0.0.1:1/", **wrong}))
