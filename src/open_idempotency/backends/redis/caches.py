"""Caches of the application that are on Redis: their server is used as a backend.

Only the settings of a cache's client are read. Keys have the backend's own prefix, so the cache's ``KEY_PREFIX`` and
its version change nothing. Clearing a cache by its prefix leaves the records. Django's ``cache.clear()`` sends
``FLUSHDB``, which deletes them, so a separate database is safer.

This is the one module that uses private parts of Django's cache and of cachelib. No request passes it.
"""

from __future__ import annotations

import logging
import sys
from typing import Any
from urllib.parse import unquote

from open_idempotency.backends._shared import urls
from open_idempotency.backends.redis.backend import RedisBackend
from open_idempotency.backends.redis.options import OPTIONS
from open_idempotency.exceptions import ConfigurationError, MissingExtra

_SCHEME = "django-cache"
_DJANGOS, _DJANGO_REDIS, _FLASK_CACHING = (
    "django.core.cache.backends.redis",
    "django_redis.cache",
    "flask_caching.backends.rediscache",
)
_REASON = (
    "it cannot compare and set: a claim has to be one atomic step on a server that all workers share. Use a cache on "
    "Redis, or another backend"
)
_logger = logging.getLogger("open_idempotency")


class DjangoCacheBackend(RedisBackend):
    """A backend on the server of a Django cache: ``django-cache://default?prefix=oi:``.

    ``default``: the alias in ``CACHES``. Takes Django's own ``RedisCache`` and django-redis. The options are those of
    ``RedisBackend``. Raises ``ConfigurationError`` for any other cache. Since 0.1.
    """

    @classmethod
    def from_url(cls, url: str, **options: Any) -> DjangoCacheBackend:
        """``django-cache://alias``, with options of ``RedisBackend``."""
        parts = urls.split(url)
        alias = unquote(parts.netloc)
        if parts.path not in ("", "/"):
            raise ConfigurationError(f"backend: {_SCHEME}:// has an alias and options alone, got the path {parts.path}")
        return cls(_client_of(alias), **urls.options(parts, OPTIONS) | urls.keywords(options, OPTIONS, f"{_SCHEME}://"))


def of_django_cache(cache: Any, **options: Any) -> RedisBackend:
    """The backend on the server of a Django cache, such as ``caches["default"]``. Raises ``ConfigurationError``."""
    return RedisBackend(_client_of_django(cache, None), **options)


def of_flask_caching(cache: Any, **options: Any) -> RedisBackend:
    """The backend on the server of a ``flask_caching.Cache`` whose type is ``RedisCache`` or ``RedisSentinelCache``.

    Raises ``ConfigurationError``.
    """
    return RedisBackend(_client_of_flask(cache), **options)


def _client_of(alias: str) -> Any:
    try:
        from django.conf import settings
        from django.core.cache import InvalidCacheBackendError, caches
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"backend: {_SCHEME}:// needs the django package: pip install 'open-idempotency[django]'"
        ) from error
    try:
        cache = caches[alias]
    except InvalidCacheBackendError as error:
        known = ", ".join(sorted(settings.CACHES))
        raise ConfigurationError(f"backend: no cache {alias!r} can be used; CACHES has {known} ({error})") from error
    return _client_of_django(cache, settings.CACHES[alias])


def _client_of_django(cache: Any, said: Any) -> Any:
    """The client with which a cache writes. ``said``: the cache's settings; None where they are not known."""
    if _is(cache, _DJANGO_REDIS):
        try:
            return cache.client.get_client(write=True)
        except TypeError as error:  # its ShardClient chooses a server by the key
            raise ConfigurationError(
                f"backend: the cache has several servers ({type(cache.client).__name__}), and a record has one; use a "
                "cache on one of them"
            ) from error
    if not _is(cache, _DJANGOS):
        raise ConfigurationError(f"backend: the cache is {_name(cache)}; {_REASON}")
    try:
        return cache._cache.get_client(None, write=True)  # pyright: ignore[reportPrivateUsage]  # no public name leads to the client
    except AttributeError as error:
        return _by_location(said, error)


def _by_location(said: Any, error: AttributeError) -> Any:
    """A client made of the settings, where this release of Django keeps its own elsewhere."""
    import redis

    location = None if said is None else said.get("LOCATION")
    first = location if isinstance(location, str) else next(iter(location or ()), None)
    if said is None or first is None or said.get("OPTIONS"):
        raise ConfigurationError(
            f"backend: this release of Django does not say where its cache connects ({error}); give its URL instead"
        ) from error
    _logger.warning(
        "this release of Django is not known, so the server of the cache is read from LOCATION alone (%s)", error
    )
    return redis.Redis.from_url(first.replace(";", ",").partition(",")[0])


def _client_of_flask(cache: Any) -> Any:
    try:
        found = cache.cache if hasattr(type(cache), "cache") else cache
    except (RuntimeError, AttributeError, KeyError) as error:
        raise ConfigurationError(
            "backend: this flask_caching.Cache has no application yet; call its init_app first, and make the backend "
            "inside `with app.app_context():`"
        ) from error
    if not _is(found, _FLASK_CACHING):
        raise ConfigurationError(f"backend: the cache is {_name(found)}; {_REASON}")
    client = getattr(found, "_write_client", None)
    if client is None:
        raise ConfigurationError(
            "backend: this release of cachelib does not say where the cache connects (it has no _write_client); pass "
            'its URL instead, such as app.config["CACHE_REDIS_URL"]'
        )
    return client


def _is(cache: object, module: str) -> bool:
    """Whether a cache is of the classes of a module, which has been imported if it is."""
    found = sys.modules.get(module)
    kind: Any = getattr(found, "RedisCache", None)
    return kind is not None and isinstance(cache, kind)


def _name(cache: object) -> str:
    return f"{type(cache).__module__}.{type(cache).__qualname__}"
