"""An application's caches, pools and engines as backends: their server is used, and they themselves are not."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator
from typing import Any

import django
import pytest
import redis
from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.redis import RedisCache
from django.test import override_settings
from flask import Flask
from flask_caching import Cache
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from open_idempotency import open_backend
from open_idempotency.backend import Claim, Complete, Finished, Get, Leased
from open_idempotency.conformance.support import claim_of
from open_idempotency.exceptions import ConfigurationError
from tests.postgres_server import PostgresServer

DJANGOS = "django.core.cache.backends.redis.RedisCache"
DJANGO_REDIS = "django_redis.cache.RedisCache"
LOCAL = "django.core.cache.backends.locmem.LocMemCache"


@pytest.fixture(scope="module", autouse=True)
def _django() -> None:
    if not settings.configured:
        settings.configure(CACHES={"default": {"BACKEND": LOCAL}}, DATABASES={}, USE_TZ=True)
        django.setup()


def _claim() -> Claim:
    return claim_of(secrets.token_bytes(32))


def _remembers(backend: Any, again: Any) -> Claim:
    """Whether a claim that one backend has completed is replayed by another one on the same server."""
    c = _claim()
    result = backend.claim(c)
    assert isinstance(result, Leased)
    backend.complete(Complete(result.lease, b"response"))
    assert again.claim(c) == Finished(b"response")
    backend.close()
    again.close()
    return c


@pytest.fixture(params=[DJANGOS, DJANGO_REDIS])
def cached(request: pytest.FixtureRequest, valkey_url: str) -> Iterator[str]:
    """The URL of the server of the cache ``other-alias``, whose keys have a prefix."""
    cache = {"BACKEND": request.param, "LOCATION": valkey_url, "KEY_PREFIX": "shop", "VERSION": 7}
    with override_settings(CACHES={"default": {"BACKEND": LOCAL}, "other-alias": cache}):
        yield valkey_url


@pytest.mark.parametrize("name", ["url", "object"])
def test_a_django_cache_on_redis_is_a_backend(cached: str, name: str) -> None:
    """B-25: under the backend's own prefix; the cache's prefix and version are ignored."""
    cache = caches["other-alias"]
    cache.set("k", "v")
    backend = open_backend("django-cache://other-alias?timeout=5" if name == "url" else cache)
    c = _remembers(backend, open_backend(cached))
    with redis.Redis.from_url(cached) as client:
        assert client.exists(b"oi:" + c.record_id) or client.exists(b"oi:" + c.record_id.hex().encode())
    assert cache.get("k") == "v"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("django-cache://default", r"the cache is .*LocMemCache; it cannot compare and set: .* Use a cache on Redis"),
        ("django-cache://missing", r"no cache 'missing' can be used; CACHES has default, other-alias"),
        ("django-cache://other-alias/3", r"has an alias and options alone, got the path /3"),
        ("django-cache://other-alias?lease=3", r"has no option 'lease'; known: coalesce, "),
    ],
)
def test_another_cache_is_refused_with_the_reason(cached: str, url: str, said: str) -> None:
    """B-25: when the backend is made."""
    with pytest.raises(ConfigurationError, match=said):
        open_backend(url)


def test_a_release_of_django_that_keeps_its_client_elsewhere(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """B-25: LOCATION is used with one warning; if OPTIONS matter too, it is an error."""

    class Renamed(RedisCache):
        """Lacks the private attribute."""

        @property
        def _cache(self) -> Any:
            raise AttributeError("_cache")

    monkeypatch.setattr("django.core.cache.backends.redis.RedisCache", Renamed)
    cache: dict[str, Any] = {"BACKEND": DJANGOS, "LOCATION": f"{valkey_url};redis://127.0.0.1:1"}
    with override_settings(CACHES={"default": cache}), caplog.at_level(logging.WARNING, "open_idempotency"):
        _remembers(open_backend("django-cache://default"), open_backend(valkey_url))
        assert [record.message for record in caplog.records if "LOCATION" in record.message] == [
            "this release of Django is not known, so the server of the cache is read from LOCATION alone (_cache)"
        ]
    elsewhere = {**cache, "OPTIONS": {"db": 3}}
    refused = pytest.raises(ConfigurationError, match="does not say where its cache connects")
    with override_settings(CACHES={"default": elsewhere}), refused:
        open_backend("django-cache://default")


def test_the_redis_of_flask_caching_is_a_backend(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-25: other types are refused, and so is a release with other attributes."""
    app = Flask(__name__)
    cache = Cache(app, config={"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": valkey_url, "CACHE_KEY_PREFIX": "shop"})
    _remembers(open_backend(cache), open_backend(valkey_url))
    monkeypatch.delattr(cache.cache, "_write_client")
    with pytest.raises(ConfigurationError, match=r"this release of cachelib .*pass its URL instead"):
        open_backend(cache)
    simple = Cache(Flask("other"), config={"CACHE_TYPE": "SimpleCache"})
    with pytest.raises(ConfigurationError, match=r"the cache is .*SimpleCache; it cannot compare and set"):
        open_backend(simple)
    with pytest.raises(ConfigurationError, match="has no application yet; call its init_app first"):
        open_backend(Cache())


def test_a_pool_of_psycopg_pool_is_a_backend(postgres18: PostgresServer) -> None:
    """B-25: its settings are used, and it is neither opened nor closed."""
    name = secrets.token_hex(8)
    row = {"autocommit": True, "application_name": name}
    pool = ConnectionPool(postgres18.url(), kwargs=row, open=False, min_size=0, max_size=1)
    backend = open_backend(pool, timeout=10)
    _remembers(backend, open_backend(postgres18.url()))
    assert f"application_name={name}" in backend.options.conninfo  # type: ignore[attr-defined]  # PostgreSQL's have options
    assert pool.closed
    pool.open()
    backend.get(Get(bytes(32)))
    backend.close()
    assert not pool.closed
    pool.close()

    async def awaited() -> None:
        backend = open_backend(AsyncConnectionPool(postgres18.url(), open=False), timeout=10).to_async()
        assert isinstance(await backend.claim(_claim()), Leased)
        await backend.close()

    asyncio.run(awaited())


def test_a_pool_whose_settings_change_is_refused() -> None:
    """B-25: its connections may go to any server."""
    with pytest.raises(ConfigurationError, match=r"computes its settings anew .*pass a URL"):
        open_backend(ConnectionPool(lambda: "host=a", open=False))
    with pytest.raises(ConfigurationError, match=r"the settings of psycopg_pool.*invalid connection option \"hots\""):
        open_backend(ConnectionPool("", kwargs={"hots": "a"}, open=False))


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg"])
def test_an_engine_of_sqlalchemys_is_a_backend(driver: str, postgres18: PostgresServer) -> None:
    """B-25: an engine is accepted, sync and async."""
    url = postgres18.url().replace("postgresql://", f"postgresql+{driver}://")
    engine: Any = create_engine(url) if driver == "psycopg" else create_async_engine(url)
    backend = open_backend(engine, timeout=10)
    backend.migrate()
    _remembers(backend, open_backend(f"sqlalchemy+{url}", timeout=10))

    async def awaited() -> None:
        result = await backend.to_async().claim(_claim())
        assert isinstance(result, Leased)
        await backend.to_async().close()

    asyncio.run(awaited())


@pytest.mark.parametrize("wrong", [object(), 3, {"url": "memory://"}])
def test_anything_else_is_refused(wrong: Any) -> None:
    """B-25: the error lists what is accepted."""
    with pytest.raises(ConfigurationError, match=r"expected a URL such as .* a pool of .* cache on Redis"):
        open_backend(wrong)
