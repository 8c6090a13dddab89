"""What docs/frameworks/litestar.md says of Litestar beyond its examples: routes, guards, compression and CORS."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, post
from litestar.config.compression import CompressionConfig
from litestar.config.cors import CORSConfig
from litestar.exceptions import PermissionDeniedException
from litestar.middleware import DefineMiddleware
from litestar.middleware.session.client_side import CookieBackendConfig

from open_idempotency._core.about import read_about
from open_idempotency._routes import survey
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backend import Get
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.sqlite import SqliteBackend

KEY = {"Idempotency-Key": "0190d3c4-7a51-7c2e-9d3e-2f7d1c4b5a60"}
