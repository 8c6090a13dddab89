"""The one Django project of all test suites, as Django can be set up only once in a process.

Call ``set_up()`` before importing anything of Django that needs settings; a test changes settings by
``override_settings``.
"""

from __future__ import annotations

import os


def set_up() -> None:
    """Set Django up with this project's settings; only the first call has an effect."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django_project.settings"
    import django
    from django.apps import apps

    if not apps.ready:
        django.setup()
