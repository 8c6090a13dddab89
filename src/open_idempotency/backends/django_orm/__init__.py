"""The Django backend: ``django://default``, the records in a database of the Django project itself.

Its tables are those of the application ``open_idempotency.django``, whose migrations make them. Importing this needs
Django and no settings; making a backend needs both.
"""

from __future__ import annotations

from open_idempotency.backends.django_orm.backend import AsyncDjangoBackend, DjangoBackend

__all__ = ["AsyncDjangoBackend", "DjangoBackend"]
