"""The fixture of the pytest plugin, for environments whose installed package has no plugin yet."""

from __future__ import annotations

from open_idempotency.pytest_plugin import idempotency

__all__ = ["idempotency"]
