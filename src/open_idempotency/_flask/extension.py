"""The extension object: options from arguments and ``app.config``, one engine for each application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Flask

from open_idempotency._engine.engine import Engine
from open_idempotency._flask.hooks import Hooks
from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy, refuse_unknown

KEY = "open_idempotency"
PREFIX = "IDEMPOTENCY_"


class Idempotency:
    """Protects the views of Flask applications: ``Idempotency(app, backend="sqlite:///idempotency.db")``.

    ``backend``: a URL or an instance. ``policy`` and ``fields``: an ``IdempotencyPolicy``, its fields, or both.
    What is not given comes from ``app.config``: ``IDEMPOTENCY_BACKEND``, ``IDEMPOTENCY_LEASE`` and so on, one key for
    each policy field; a whole ``policy`` takes the place of all fields there. Without an application call
    ``init_app``, for as many as needed. Raises ``ConfigurationError``. Since 0.1.
    """

    def __init__(
        self,
        app: Flask | None = None,
        backend: str | Backend | AsyncBackend | None = None,
        *,
        policy: IdempotencyPolicy | None = None,
        **fields: Any,
    ) -> None:
        refuse_unknown(fields)
        if app is not None and not hasattr(app, "extensions"):
            raise ConfigurationError(
                f"the first argument is the Flask application, not {type(app).__name__}; the backend is backend=..."
            )
        self._backend = backend
        self._policy = policy
        self._fields = fields
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Protect one more application. Its engine is then ``app.extensions["open_idempotency"]``.

        Raises ``ConfigurationError`` for wrong options, and for an application that is protected already.
        """
        if KEY in app.extensions:
            raise ConfigurationError("open_idempotency: this application is initialised already")
        backend, fields = read_config(app.config)
        if self._policy is not None:
            fields = {}
        if self._backend is not None:
            backend = self._backend
        if backend is None:
            raise ConfigurationError(
                'backend: none given; pass a URL such as backend="sqlite:///idempotency.db", '
                f'or set app.config["{PREFIX}BACKEND"]'
            )
        engine = Engine(backend, self._policy, {**fields, **self._fields}, threads=True)
        Hooks(app, engine).install()
        app.extensions[KEY] = engine


def read_config(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The backend and the policy fields in an application's configuration. Raises ``ConfigurationError``."""
    found = {key: value for key, value in config.items() if key.startswith(PREFIX)}
    backend = found.pop(f"{PREFIX}BACKEND", None)
    fields: dict[str, Any] = {}
    for key, value in found.items():
        name = key[len(PREFIX) :].lower()
        try:
            refuse_unknown([name])
        except ConfigurationError as error:
            raise ConfigurationError(f"{key}: {error}") from None
        fields[name] = value
    return backend, fields
