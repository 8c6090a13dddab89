"""The settings that all suites share. The database is a file that belongs to this process alone."""

import atexit
import tempfile

_folder = tempfile.TemporaryDirectory(prefix="open-idempotency-django-")
atexit.register(_folder.cleanup)

SECRET_KEY = "for tests only"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.django_project.urls"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "open_idempotency.django",
]
MIDDLEWARE = ["open_idempotency.django.IdempotencyMiddleware"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{_folder.name}/db.sqlite3"}}
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [], "OPTIONS": {}}]
# what the handlers say of 4xx and 5xx responses is not of interest here
LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"django": {"level": "CRITICAL"}}}
