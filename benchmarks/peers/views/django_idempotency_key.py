"""The view that django-idempotency-key protects."""

from __future__ import annotations

from django.urls import path

from benchmarks.apps.django_views import charge
from benchmarks.interface import PATH
from benchmarks.peers.loading import load

urlpatterns = [path(PATH[1:], load("idempotency_key.decorators").idempotency_key(optional=True)(charge))]
