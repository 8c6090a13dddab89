"""The one Django project of all test suites: Django can be set up once in a process.

``set_up()`` before anything of Django that needs settings; then ``override_settings`` for what a test wants else.
"""

from __future__ import annotations

import os


def set_up() -> None:
    """Set Django up with this project's settings; the first call counts."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django_project.settings"
    import django
    from django.apps import apps

    if not apps.ready:
        django.setup()
