"""Types that a policy's callables take and return: the request, the response, and the problem to render.

``key=``, ``scope=`` and ``fingerprint=`` take a ``Request``, ``redact=`` takes and returns a ``Response``,
``on_replay=`` takes a ``Response`` and a ``Request`` and returns a ``Response``, ``render_problem=`` takes a
``Problem`` and returns a ``Response``. A subclass of a middleware returns an ``Identity`` from ``identify``.
"""

from __future__ import annotations

from open_idempotency._core.models import Body, Headers, Identity, Request, Response
from open_idempotency._core.problems import Problem

__all__ = ["Body", "Headers", "Identity", "Problem", "Request", "Response"]
