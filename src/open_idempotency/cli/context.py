"""Where a command finds its backend and the application's policy, and where it writes and asks."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TextIO

from open_idempotency import operations
from open_idempotency.backend import Backend
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.registry import Given, open_backend, refuse_new_file
from open_idempotency.cli.output import harmless, printable
from open_idempotency.exceptions import ConfigurationError, IdempotencyError
from open_idempotency.operations import ExitCode, OperationRefused
from open_idempotency.policy import IdempotencyPolicy

#: the environment variable that names the backend; other users of the machine do not see it, unlike an argument
VARIABLE = "OPEN_IDEMPOTENCY_BACKEND"


class WrongUsage(IdempotencyError):
    """Options that do not fit each other, or one that is missing."""

    code = "ERR_USAGE"


class Unconfirmed(OperationRefused):
    """The question was declined, or there was nobody to ask."""

    code = "ERR_UNCONFIRMED"
    exit_code = ExitCode.UNCONFIRMED


@dataclass(frozen=True, slots=True)
class Application:
    """What ``--app`` names. ``of``: the application, or its policy. ``backend``: of its records, if it says so."""

    of: object
    policy: IdempotencyPolicy
    backend: Given | None


class Context:
    """One run of a command. ``prog``: the command as the user calls it."""

    prog = "open-idempotency"

    def __init__(self, options: Namespace, out: TextIO, errors: TextIO) -> None:
        self.options = options
        self.out = out
        self.errors = errors

    def write(self, text: str) -> None:
        """Write lines to standard output. Control characters are escaped, and what it cannot encode.

        What a client has sent may be among the text, and could write to the operator's terminal otherwise.
        """
        encoding = getattr(self.out, "encoding", None) or "utf-8"
        line = harmless(text if text.endswith("\n") else text + "\n")
        self.out.write(line.encode(encoding, "backslashreplace").decode(encoding))

    def note(self, text: str) -> None:
        """Write a line to standard error."""
        self.errors.write(f"{self.prog}: {self._line(text)}\n")

    def _line(self, text: str) -> str:
        """The text as one line that does nothing to a terminal."""
        return printable(text, getattr(self.errors, "encoding", None) or "utf-8")

    @cached_property
    def application(self) -> Application | None:
        """The application that ``--app`` names. Raises ``ConfigurationError`` where it cannot be imported."""
        path: str | None = getattr(self.options, "app", None)
        if path is None:
            return None
        try:
            return application_of(_imported(path))
        except ConfigurationError as error:
            raise ConfigurationError(f"--app: {path}: {error}") from error

    @property
    def policy(self) -> IdempotencyPolicy | None:
        """The application's policy, where there is one."""
        return None if self.application is None else self.application.policy

    @contextmanager
    def opened(self) -> Generator[Backend, None, None]:
        """The backend, until the end of the block. A database file that is not there is not created.

        Raises ``WrongUsage`` where none is named, and ``ConfigurationError``.
        """
        named = self._named()
        backend = open_backend(named)
        try:
            self.check(backend)
            yield backend
        finally:
            if isinstance(named, str):
                backend.close()

    def check(self, backend: Backend) -> None:
        """Refuse a backend whose records no command can reach."""
        if isinstance(backend, MemoryBackend):
            raise ConfigurationError(
                "backend: the records of memory:// are in the process of the application, where no command reaches them"
            )
        if self.options.name != "migrate":
            refuse_new_file(backend.file)

    def _named(self) -> Given:
        named = (getattr(self.options, "url", None), getattr(self.options, "backend", None))
        given = [url for url in named if url is not None]
        if len(given) > 1:
            raise WrongUsage("the backend is named twice: give its URL once")
        if given:
            url: str = given[0]
            return url
        if self.application is not None and self.application.backend is not None:
            return self.application.backend
        found = os.environ.get(VARIABLE)
        if not found:
            raise WrongUsage(
                f"which backend? Give --backend URL, or set {VARIABLE}, which other users of this machine cannot read"
            )
        return found

    def confirm(self, question: str) -> None:
        """Ask, unless ``--yes`` was given. Raises ``Unconfirmed`` where the reply is not yes, or nobody can reply."""
        if self.options.yes:
            return
        if not sys.stdin or not sys.stdin.isatty():
            raise Unconfirmed(
                "there is no terminal to ask on, so nothing was done; give --yes to do it without a question"
            )
        self.errors.write(f"{self._line(question)} [y/N] ")
        self.errors.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Unconfirmed("nothing was done")


def _imported(path: str) -> object:
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise WrongUsage(f"--app: expected module:attribute, such as shop.main:app, got {path!r}")
    # As with servers: the application is found from the directory in which the command runs.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    # An application may raise anything while it is imported. One that ends there would end the command with its code.
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"it cannot be imported: {type(error).__name__}: {error}") from error
    return found


def application_of(found: object) -> Application:
    """An application, or a policy alone. Raises ``ConfigurationError`` for what is neither."""
    if isinstance(found, IdempotencyPolicy):
        return Application(found, found, None)
    engine = operations.engine_of(found)
    return Application(found, engine.policy, engine.backend)
