"""The view that django-idempotency-key protects."""

from __future__ import annotations

from django.urls import path

from benchmarks.apps.django_views import charge
from benchmarks.interface import OTHER_PATH, PATH
from benchmarks.peers.loading import load

_protected = load("idempotency_key.decorators").idempotency_key(optional=True)(charge)

urlpatterns = [path(each[1:], _protected) for each in (PATH, OTHER_PATH)]
