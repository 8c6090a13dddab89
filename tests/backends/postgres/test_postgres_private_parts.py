"""A psycopg without the private names that the backend uses: it falls back to public ones, and warns once."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator

import psycopg
import pytest

from open_idempotency.backend import Complete, Finished, Get, Leased
from open_idempotency.backends._shared import psycopg_waits
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.conformance.support import claim_of
from open_idempotency.exceptions import BackendUnavailable
from tests.postgres_server import PostgresServer


@pytest.fixture(params=["psycopg.generators.execute", "psycopg.errors.error_from_result"])
def missing(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a missing private attribute."""
    name: str = request.param
    with pytest.MonkeyPatch.context() as patched:
        patched.delattr(name)
        psycopg_waits.look(again=True)
        yield name
    psycopg_waits.look(again=True)


def test_without_a_private_part_the_public_way_is_taken(
    missing: str, postgres18: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """B-25: sync and async, alone and in a batch, with results, errors and large values."""
    psycopg_waits.look()
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        psycopg_waits.look(again=True)
        psycopg_waits.check_release()
    (message,) = caplog.messages
    assert message.startswith(f"psycopg {psycopg.__version__} is not known (")
    assert missing.rpartition(".")[2] in message
    large = bytes(3_000_000)
    backend = PostgresBackend(postgres18.url(), timeout=20)

    async def request_of_a_client(response: bytes) -> None:
        c = claim_of(secrets.token_bytes(32))
        result = await backend.to_async().claim(c)
        assert isinstance(result, Leased)
        await backend.to_async().complete(Complete(result.lease, response))
        assert await backend.to_async().claim(c) == Finished(response)

    async def awaited() -> None:
        await asyncio.gather(*(request_of_a_client(response) for response in (b"a", large)))
        await asyncio.gather(*(request_of_a_client(b"b") for _ in range(20)))
        await backend.to_async().close()

    asyncio.run(awaited())
    assert backend.get(Get(bytes(32))) is None
    backend.close()


def test_errors_of_the_server_keep_their_codes(missing: str, postgres18: PostgresServer) -> None:
    """B-25: features that depend on them, such as the hint to migrate, still work."""
    with psycopg.connect(postgres18.url(), autocommit=True) as connection:
        name = f"empty_{secrets.token_hex(4)}"
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    refused = pytest.raises(BackendUnavailable, match="run `open-idempotency migrate`")
    with PostgresBackend(postgres18.url(name), timeout=20) as backend, refused:
        backend.get(Get(bytes(32)))
