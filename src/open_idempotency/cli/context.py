"""The context of a command: its backend, the application's policy, its output, and its questions."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, TextIO

from open_idempotency import operations
from open_idempotency.backend import Backend, Level
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.registry import Given, open_backend, refuse_new_file
from open_idempotency.decisions import State
from open_idempotency.exceptions import ConfigurationError, IdempotencyError
from open_idempotency.operations import ExitCode, OperationRefused, RecordView, StageView, duration
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


# How commands print: tables that fit the terminal, styles, and JSON.

_GAP = "  "
_NARROWEST = 6
_RED, _YELLOW, _GREEN, _DIM, _PLAIN = "31", "33", "32", "2", ""
_LEVELS = {Level.OK: _GREEN, Level.UNKNOWN: _DIM, Level.WARNING: _YELLOW, Level.PROBLEM: _RED}


class Page:
    """Standard output: whether it is a terminal, its width, and whether it shows styles."""

    def __init__(self, out: TextIO) -> None:
        self._terminal = out.isatty()
        self._styles = self._terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._encoding = out.encoding or "ascii"

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None if nothing is to be cut, as in a pipe."""
        return shutil.get_terminal_size().columns if self._terminal else None

    def styled(self, text: str, style: str) -> str:
        """The text in a style, which is an ANSI number; unchanged if styles are off."""
        return f"\x1b[{style}m{text}\x1b[0m" if style and self._styles else text

    def level(self, level: Level) -> str:
        """A level of a finding, styled."""
        return self.styled(level.value, _LEVELS[level])

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> str:
        """A table with a head. On a narrow terminal the last columns are cut. ``styles``: of the rows."""
        cells = [head, *([printable(cell, self._encoding) for cell in row] for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        widths = fitted(widths, self.width)
        lines = [
            _GAP.join(cut(cell, width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in cells
        ]
        return "\n".join([lines[0], *map(self.styled, lines[1:], styles or [_PLAIN] * len(rows))])

    def facts(self, facts: Sequence[tuple[str, str]]) -> str:
        """Names and values, one line each."""
        width = max(len(name) for name, _ in facts)
        return "\n".join(f"{name:<{width}}{_GAP}{printable(value, self._encoding)}".rstrip() for name, value in facts)


def fitted(widths: Sequence[int], width: int | None) -> list[int]:
    """The widths of the columns that fit. The first one is never cut.

    The others are narrowed, beginning with the last, and then left out, beginning with the last.
    """
    left = list(widths)
    if width is None:
        return left
    while len(left) > 1 and left[0] + sum(min(each, _NARROWEST) + len(_GAP) for each in left[1:]) > width:
        left.pop()
    over = sum(left) + len(_GAP) * (len(left) - 1) - width
    for column in range(len(left) - 1, 0, -1):
        less = max(0, min(over, left[column] - _NARROWEST))
        left[column] -= less
        over -= less
    return left


def cut(text: str, width: int) -> str:
    """The text in at most ``width`` columns. If it is cut, it ends with a full stop."""
    return f"{text:<{width}}" if len(text) <= width else text[: width - 1] + "."


def printable(text: str, encoding: str) -> str:
    """The text without control characters, which could move the cursor, and without unencodable characters."""
    shown = "".join(map(_shown, text))
    return shown.encode(encoding, "backslashreplace").decode(encoding)


_STYLE = re.compile(r"(\x1b\[[0-9]{1,2}m)")


def harmless(text: str) -> str:
    """The text without control characters, except line breaks, tabs and this library's styles."""
    return "".join(
        part if _STYLE.fullmatch(part) else "".join(each if each in "\n\t" else _shown(each) for each in part)
        for part in _STYLE.split(text)
    )


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def state_text(view: RecordView) -> str:
    """The state in words; ``free`` for a failed record none of whose attempts counts."""
    free = view.state is State.FAILED and not view.attempt
    return ("free" if free else view.state.value) + (", in doubt" if view.in_doubt else "")


def lease_text(view: RecordView) -> str:
    """How long the lease lasts, or how long ago it ended; empty for an attempt that has ended."""
    if view.state is State.ALIVE:
        return f"{duration(view.lease_left)} left"
    return f"ended {duration(view.lease_left)} ago" if view.state is State.ABANDONED else "-"


def stage_line(stage: StageView) -> str:
    """A stage: its name, its key, and its state on record."""
    name = stage.name + (f" (key {stage.key})" if stage.key else "")
    size = f", {stage.size} bytes" if stage.size else ""
    return f"{name}: {stage.found}{size}"


def as_text(value: Any) -> str:
    """A value as JSON text. Raises ``TypeError`` for any other value, which would be a fault of this library."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)
