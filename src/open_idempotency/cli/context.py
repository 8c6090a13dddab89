"""The context of a command: its backend, the application's policy, its output, and its questions."""

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
    """Options that contradict each other, or a missing option."""

    code = "ERR_USAGE"


class Unconfirmed(OperationRefused):
    """The confirmation was declined, or there was no terminal to ask on."""

    code = "ERR_UNCONFIRMED"
    exit_code = ExitCode.UNCONFIRMED


@dataclass(frozen=True, slots=True)
class Application:
    """What ``--app`` names. ``of``: the application, or its policy. ``backend``: its backend, if it has one."""

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
        """Write lines to standard output. Control and unencodable characters are escaped.

        Otherwise text that a client has sent could control the operator's terminal.
        """
        encoding = getattr(self.out, "encoding", None) or "utf-8"
        line = harmless(text if text.endswith("\n") else text + "\n")
        self.out.write(line.encode(encoding, "backslashreplace").decode(encoding))

    def note(self, text: str) -> None:
        """Write a line to standard error."""
        self.errors.write(f"{self.prog}: {self._line(text)}\n")

    def _line(self, text: str) -> str:
        """The text as one line, without characters that control a terminal."""
        return printable(text, getattr(self.errors, "encoding", None) or "utf-8")

    @cached_property
    def application(self) -> Application | None:
        """The application that ``--app`` names. Raises ``ConfigurationError`` if it cannot be imported."""
        path: str | None = getattr(self.options, "app", None)
        if path is None:
            return None
        try:
            return application_of(_imported(path))
        except ConfigurationError as error:
            raise ConfigurationError(f"--app: {path}: {error}") from error

    @property
    def policy(self) -> IdempotencyPolicy | None:
        """The application's policy, or None."""
        return None if self.application is None else self.application.policy

    @contextmanager
    def opened(self) -> Generator[Backend, None, None]:
        """The backend, open until the end of the block. A missing database file is not created.

        Raises ``WrongUsage`` if no backend is named, and ``ConfigurationError``.
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
        """Refuse a backend whose records only the application's process can reach."""
        if isinstance(backend, MemoryBackend):
            raise ConfigurationError(
                "backend: the records of memory:// are in the application's process, where no command can reach them"
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
        """Ask, unless ``--yes`` was given. Raises ``Unconfirmed`` if the reply is not yes, or there is no terminal."""
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
    # As servers do: the application is imported from the current directory.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    # An application may raise anything while it is imported. SystemExit would end the command with its exit code.
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"it cannot be imported: {type(error).__name__}: {error}") from error
    return found


def application_of(found: object) -> Application:
    """An application or a policy. Raises ``ConfigurationError`` for anything else."""
    if isinstance(found, IdempotencyPolicy):
        return Application(found, found, None)
    engine = operations.engine_of(found)
    return Application(found, engine.policy, engine.backend)
