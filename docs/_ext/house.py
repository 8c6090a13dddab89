"""The layout in figures, and the walk of one request: ten steps, each with a link to the line where it begins."""

from __future__ import annotations

import importlib
import inspect
import json
import statistics
from pathlib import Path
from typing import NamedTuple

SOURCE = "https://github.com/open-idempotency/open-idempotency/blob/main/src/open_idempotency/"
_ROOT = Path(__file__).resolve().parent.parent.parent
_WATCHED = "asgi, redis, new key: "
#: figures of the layout before, at commit 0c2ca61, in the order of the table
_BEFORE = {
    "files": "254",
    "files without optional parts": "237",
    "median": "114",
    "largest": "441",
    "calls": "270",
    "files passed": "42",
    "changes": "173",
}
# Parts that an application may leave alone: telemetry, the command, operations, `Once`, the test kit, the HTTP runner,
# Django's admin pages and its OpenAPI schema.
_OPTIONAL = (
    "telemetry/", "cli/", "operations/", "testing/", "conformance/http/", "pytest_plugin", "__main__", "once",
    "django/admin", "django/record_", "django/management/", "django/spectacular", "_engine/measuring",
    "_shared/findings",
)  # fmt: skip


class Step(NamedTuple):
    """``where``: module and name below ``open_idempotency``, such as ``asgi:IdempotencyMiddleware.__call__``."""

    where: str
    what: str


STEPS = (
    Step(
        "asgi:IdempotencyMiddleware.__call__",
        "The server calls the middleware. A request without a key is passed on at once.",
    ),
    Step("_routes.coverage:Coverages.by", "The rules of the route and of the path make one policy for the request."),
    Step(
        "_asgi:Exchange.run",
        "One object stands for the request. It reads the body, calls the application and sends the response.",
    ),
    Step(
        "_core.admission:admit",
        "The order of operations before the handler, as a generator of commands: key, caller, body, claim.",
    ),
    Step(
        "_core.keys:caller_scope",
        "Identify the caller. The caller, the key and the application's name make the record id.",
    ),
    Step(
        "_core.fingerprint:fingerprint_steps",
        "Fingerprint the request: the digest by which another request with the same key is refused.",
    ),
    Step(
        "_core.commands:AsyncDriver.run",
        "A driver executes each command: on the backend, on the adapter, or by itself.",
    ),
    Step("_core.decisions:claim", "Decide what a claim finds and what it changes: one table for all backends."),
    Step(
        "_engine.heartbeat:Heartbeat.keep",
        "The lease is renewed while the handler runs. `idem` finds the attempt in the context and records stages.",
    ),
    Step(
        "_core.settlement:finish",
        "The order of operations after the handler: the response is stored before its last byte leaves.",
    ),
)


def walk() -> str:
    """The steps as a numbered list."""
    return "".join(f"{number}. {step.what} [{_name(step)}]({_link(step)})\n" for number, step in enumerate(STEPS, 1))


def _name(step: Step) -> str:
    module, _, name = step.where.partition(":")
    return f"`{module.replace('.', '/')}.py`, `{name}`"


def _link(step: Step) -> str:
    module, _, name = step.where.partition(":")
    found: object = importlib.import_module(f"open_idempotency.{module}")
    for part in name.split("."):
        found = vars(found)[part]
    _, line = inspect.getsourcelines(found)  # type: ignore[arg-type]
    return f"{SOURCE}{module.replace('.', '/')}.py#L{line}"


def figures() -> str:
    """Files and lines of the package, and the way of one keyed request on Redis under asyncio, before and now."""
    package = _ROOT / "src" / "open_idempotency"
    paths = [path.relative_to(package).as_posix() for path in package.glob("**/*.py")]
    sizes = [len((package / path).read_text(encoding="utf-8").splitlines()) for path in paths]
    needed = [path for path in paths if not any(part in path for part in _OPTIONAL)]
    now = {
        "files": str(len(sizes)),
        "files without optional parts": str(len(needed)),
        "median": f"{statistics.median(sizes):.0f}",
        "largest": str(max(sizes)),
        **_calls(),
    }
    names = {
        "files": "Files in the package",
        "files without optional parts": "Files without the optional parts",
        "median": "Lines of the median file",
        "largest": "Lines of the largest file",
        "calls": "Python calls of one keyed request",
        "files passed": "Files that it passes",
        "changes": "Changes of file on its way",
    }
    rows = [f"| {text} | {_BEFORE[name]} | {now[name]} |\n" for name, text in names.items()]
    return "".join(["| | Before | Now |\n", "| --- | --- | --- |\n", *rows])


def _calls() -> dict[str, str]:
    """As the benchmarks have counted them last."""
    found = json.loads((_ROOT / "benchmarks" / "results" / "request-calls.json").read_text(encoding="utf-8"))
    counted = {one["row"].removeprefix(_WATCHED): f"{one['value']:g}" for one in found["results"]}
    return {"calls": counted["calls"], "files passed": counted["files"], "changes": counted["changes of file"]}
