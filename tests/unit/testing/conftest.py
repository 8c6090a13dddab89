"""The fixture of the plugin, also where the package was installed before it had one."""

from __future__ import annotations

from open_idempotency.pytest_plugin import idempotency

__all__ = ["idempotency"]
