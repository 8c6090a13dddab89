"""``manage.py idempotency …``: the commands of ``open-idempotency`` for the backend and the policy of the settings."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import cached_property
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.core.wsgi import get_wsgi_application

from open_idempotency.backends.registry import Given
from open_idempotency.cli.context import Application, Context
from open_idempotency.cli.parser import add_commands, run
from open_idempotency.django.conf import configured_policy, read_settings
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.operations import ExitCode


class Command(BaseCommand):
    """Finds, shows and frees keys. It needs only the settings of the middleware. Since 0.1.

    Exit codes are those of ``open-idempotency``.
    """

    help = "Finds idempotency keys, frees them, and looks after the backend of IDEMPOTENCY_BACKEND."
    # An operator needs this command even if other settings are wrong.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """All commands of ``open-idempotency``, without the options that name a backend and an application."""
        add_commands(parser, of_django=True)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one command. Raises ``CommandError`` with the exit code if that is not 0."""
        said: list[str] = []
        context = _DjangoContext(Namespace(**options), self.stdout, self.stderr, said.append)
        code = run(context.options, context)
        if code != ExitCode.DONE:
            raise CommandError("; ".join(said) or "not done", returncode=int(code))
        for text in said:
            self.stderr.write(text)


class _DjangoContext(Context):
    """One run of the command in a Django project. ``report``: takes error messages, which Django prints."""

    prog = "manage.py idempotency"

    def __init__(self, options: Namespace, out: Any, errors: Any, report: Callable[[str], None]) -> None:
        super().__init__(options, out, errors)
        self._report = report

    def note(self, text: str) -> None:
        """Report a line."""
        self._report(self._line(text))

    @cached_property
    def application(self) -> Application | None:
        """The application of the settings, with its policy and its backend. Raises ``ConfigurationError``."""
        named: Given | None = read_settings().get("backend")
        if named is None:
            raise ConfigurationError("IDEMPOTENCY_BACKEND: none given")
        return Application(get_wsgi_application(), configured_policy(), named)
