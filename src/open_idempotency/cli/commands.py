"""The commands: each calls ``open_idempotency.operations`` and prints the result."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from open_idempotency import operations
from open_idempotency.backend import Backend, Get, Level, Record
from open_idempotency.cli.context import Context, Page, as_text, lease_text, printable, stage_line, state_text
from open_idempotency.decisions import State
from open_idempotency.ledger import schema
from open_idempotency.operations import ExitCode, RecordUnknown, RecordView, duration
from open_idempotency.operations.changing import held
from open_idempotency.operations.views import label
from open_idempotency.policy import IdempotencyPolicy

_HEAD = ("RECORD", "STATE", "AGE", "ATTEMPT", "STAGES", "LEASE", "ROUTE", "HOLDER")
_SHORT = 12
#: how many of the busiest routes are shown; --json shows all
_ROUTES = 20


@contextmanager
def _found(context: Context, *, bodies: bool = False) -> Generator[tuple[Backend, RecordView], None, None]:
    """The backend, and the record that the command names."""
    with context.opened() as backend:
        record = find(context, backend)
        yield backend, operations.view_of(record, backend.now(), policy=context.policy, bodies=bodies)


def list_(context: Context) -> int:
    """``list``."""
    options = context.options
    with context.opened() as backend:
        listing = operations.list_records(
            backend, options.state, older=options.older, limit=options.limit, policy=context.policy
        )
    if options.json:
        context.write(as_text([operations.as_json(view) for view in listing.records]))
    elif listing.records:
        context.write(_table(context, listing.records))
    else:
        context.write(f"no {options.state} records" if options.state else "no records")
    if listing.matched > len(listing.records):
        context.note(f"the oldest {len(listing.records)} of {listing.matched}; --limit shows more")
    if listing.unreadable:
        context.note(f"{listing.unreadable} records could not be read: newer, corrupt, or encrypted with other keys")
    return ExitCode.DONE


def _table(context: Context, views: tuple[RecordView, ...]) -> str:
    page = Page(context.out)
    rows = [
        (
            view.record[:_SHORT],
            state_text(view),
            duration(view.age),
            str(view.attempt),
            str(len(view.stages)),
            lease_text(view),
            _route(view),
            view.holder or "-",
        )
        for view in views
    ]
    return page.table(_HEAD, rows, ["31" if view.is_stuck() else "" for view in views])


def _route(view: RecordView) -> str:
    return f"{view.method} {view.route}".strip() or "-"


def show(context: Context) -> int:
    """``show``."""
    body: bool = context.options.body
    with _found(context, bodies=body) as (_, view):
        pass
    if context.options.json:
        explained = {"explanation": list(operations.explain(view, context.policy))}
        context.write(as_text({**operations.as_json(view), **explained}))
        return ExitCode.DONE
    page = Page(context.out)
    lines = [page.facts(_facts(page, view)), "", *operations.explain(view, context.policy)]
    commands = _what_to_do(context, view)
    if commands:
        lines += ["", "What you can do:", *(f"  {line}" for line in commands)]
    if body:
        lines += _bodies(view)
    context.write("\n".join(lines))
    return ExitCode.DONE


def _facts(page: Page, view: RecordView) -> list[tuple[str, str]]:
    facts = [("record", view.record), ("state", state_text(view)), ("attempt", str(view.attempt))]
    facts.append(("begun", f"{duration(view.age)} ago"))
    if view.state in (State.ALIVE, State.ABANDONED):
        facts.append(("lease", lease_text(view)))
    facts.append(("expires", f"in {duration(view.expires_in)}"))
    for name, value in (("route", _route(view)), ("caller", view.caller), ("holder", view.holder)):
        if value and value != "-":
            facts.append((name, value))
    response = view.response
    if response is not None:
        status = "" if response.status is None else f"status {response.status}, "
        facts.append(("response", f"{status}{response.size} bytes{', encrypted' if response.encrypted else ''}"))
    for number, stage in enumerate(view.stages, 1):
        facts.append((f"stage {number}", stage_line(stage)))
    return facts


def _what_to_do(context: Context, view: RecordView) -> list[str]:
    record = view.record[:_SHORT]
    call = f"{context.prog} {{}} {record}{{}}"
    lines: list[str] = []
    for stage in view.in_doubt:
        key = f" --stage-key {_quoted(stage.key)}" if stage.key else ""
        named = f" --stage {_quoted(stage.name)}{key} --found JSON"
        lines.append(call.format("resolve", named) + "  (or --not-done)")
    if view.state not in (State.COMPLETED, State.ABSENT) and not (view.state is State.FAILED and not view.attempt):
        dead = "if its worker is dead: " if view.state is State.ALIVE else ""
        lines.append(call.format("release", "") + f"  ({dead}the key is free at once, stages stay)")
    force = " --force" if view.state is State.ALIVE else ""
    lines.append(call.format("forget", force) + "  (the next request runs again)")
    return lines


def _quoted(text: str) -> str:
    """A text quoted for a shell; as ``$'…'`` of bash and zsh if it has unprintable characters."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in escaped) + "'"


def _bodies(view: RecordView) -> list[str]:
    lines = ["", "Values of stages:"] if view.stages else []
    lines += [f"  {printable(stage.name, 'utf-8')}: {as_text(stage.value)}" for stage in view.stages]
    response = view.response
    if response is not None:
        lines += ["", f"Response: status {response.status}"]
        lines += [f"  {_escaped(name)}: {_escaped(value)}" for name, value in response.headers]
        lines += ["", _body_text(response.body)]
    return lines


def _body_text(body: bytes | None) -> str:
    if body is None:
        return "(the body was too large to store)"
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return f"({len(body)} bytes that are not text; --json prints them as base64)"
    return _escaped(text)


def _escaped(text: str) -> str:
    """The text with its lines, but without control characters, which could move the cursor."""
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)


def _report(context: Context, view: RecordView, done: str, said: str) -> int:
    if context.options.json:
        context.write(as_text({"record": view.record, "done": done}))
    else:
        context.write(said)
    return ExitCode.DONE


def forget(context: Context) -> int:
    """``forget``."""
    with _found(context) as (backend, view):
        if view.state is State.ALIVE and not context.options.force:
            raise held(view.seen)
        running = "Its attempt may still run, and is not stopped. " if view.state is State.ALIVE else ""
        context.confirm(
            f"Forget record {view.record[:_SHORT]} ({state_text(view)}, {len(view.stages)} stages)? {running}"
            "The next request with its key runs again."
        )
        operations.forget(backend, view.seen, force=context.options.force)
    return _report(context, view, "forgotten", f"forgotten {view.record[:_SHORT]}: the next request runs again")


def release(context: Context) -> int:
    """``release``."""
    with _found(context) as (backend, view):
        if view.state is not State.COMPLETED:
            context.confirm(_question(view))
        operations.release(backend, view.seen)
    return _report(context, view, "released", f"released {view.record[:_SHORT]}: the key is free{_kept(view)}")


def _kept(view: RecordView) -> str:
    """The stages that a release keeps. One that was only begun is named, since it refuses retries."""
    number = len(view.stages)
    kept = f", {number} stage{'' if number == 1 else 's'} kept" if number else ""
    doubtful = (label(stage) for stage in view.stages if stage.found == "begun")
    return kept + "".join(f"; stage {each} is in doubt: resolve it" for each in doubtful)


def _question(view: RecordView) -> str:
    holder = f" ({view.holder})" if view.holder else ""
    if view.state is State.ALIVE:
        return (
            f"Record {view.record[:_SHORT]} is held by attempt {view.attempt}{holder}, whose lease lasts "
            f"{duration(view.lease_left)} more. Is its worker known to be dead, and is the key to be freed?"
        )
    return f"Free the key of record {view.record[:_SHORT]} ({state_text(view)}{holder})? Its stages stay."


def resolve(context: Context) -> int:
    """``resolve``."""
    options = context.options
    found: Any = operations.NOT_DONE if options.not_done else options.found[0]
    outcome = "it has not happened, and runs again" if options.not_done else "it has happened, with this value"
    with _found(context) as (backend, view):
        context.confirm(f"Resolve stage {options.stage} of record {view.record[:_SHORT]}: {outcome}?")
        operations.resolve(backend, view.seen, options.stage, options.stage_key, found=found, policy=context.policy)
    said = f"resolved stage {options.stage} of {view.record[:_SHORT]}: the key is free, and the next request resumes"
    return _report(context, view, "resolved", said)


def stats(context: Context) -> int:
    """``stats``."""
    with context.opened() as backend:
        counted = operations.stats(backend, policy=context.policy)
    if context.options.json:
        context.write(as_text(dataclasses.asdict(counted)))
        return ExitCode.DONE
    page = Page(context.out)
    rows = [
        (state, str(number), duration(counted.oldest[state]) if state in counted.oldest else "-")
        for state, number in counted.states.items()
    ]
    facts = [
        ("records", str(counted.total)),
        ("stuck", str(counted.stuck)),
        ("in doubt", str(counted.in_doubt)),
        ("unreadable", str(counted.unreadable)),
    ]
    lines = [page.facts(facts), "", page.table(("STATE", "RECORDS", "OLDEST"), rows)]
    if counted.routes:
        routes = sorted(counted.routes.items(), key=lambda item: (-item[1], item[0]))[:_ROUTES]
        lines += ["", page.table(("ROUTE", "RECORDS"), [(route, str(number)) for route, number in routes])]
    context.write("\n".join(lines))
    return ExitCode.DONE


def doctor(context: Context) -> int:
    """``doctor``."""
    with context.opened() as backend:
        findings = operations.examine(backend, policy=context.policy)
    bad = {Level.PROBLEM, Level.WARNING} if context.options.strict else {Level.PROBLEM}
    if context.options.json:
        shown = [{**dataclasses.asdict(each), "level": each.level.value} for each in findings]
        context.write(as_text(shown))
    else:
        page = Page(context.out)
        for each in findings:
            context.write(f"{page.level(each.level):<8} {each.check}: {each.found}")
            if each.cure:
                context.write(f"         -> {each.cure}")
    return ExitCode.PROBLEMS if any(each.level in bad for each in findings) else ExitCode.DONE


def erase(context: Context) -> int:
    """``erase``: count the records of a caller first, ask, and delete them."""
    options = context.options
    who = caller_of(context)
    of = application_of(context, who)
    with context.opened() as backend:
        erasure = operations.erase(backend, of, force=options.force, dry_run=True, **who)
        if not options.dry_run and erasure.found:
            context.confirm(f"Erase {len(erasure.found)} records of this caller? A retry of one of them runs again.")
            erasure = operations.erase(backend, of, force=options.force, **who)
    if options.json:
        context.write(as_text(dataclasses.asdict(erasure)))
    else:
        done = f"found {len(erasure.found)}" if options.dry_run else f"erased {len(erasure.erased)}"
        context.write(f"{done} of {erasure.scanned} records")
    if erasure.live:
        context.note(f"{len(erasure.live)} are held by attempts and were left: {', '.join(_ids(erasure.live))}")
    if erasure.unknown:
        context.note(
            f"{erasure.unknown} records do not name their caller: an earlier version made them, or the backend had "
            "lost them while their attempt ran"
        )
    for named, number in erasure.elsewhere.items():
        context.note(f"{number} records may be of the same person, by {named}; name it to erase them")
    if erasure.live:
        return ExitCode.LIVE
    return ExitCode.PROBLEMS if erasure.unknown or erasure.elsewhere else ExitCode.DONE


def _ids(records: tuple[str, ...]) -> list[str]:
    return [record[:_SHORT] for record in records]


def purge(context: Context) -> int:
    """``purge``: delete all expired records in batches."""
    purged = 0
    with context.opened() as backend:
        while batch := backend.purge(context.options.batch):
            purged += batch
    context.write(as_text({"deleted": purged}) if context.options.json else f"deleted {purged}")
    return ExitCode.DONE


def migrate(context: Context) -> int:
    """``migrate``: apply missing migrations, then read from the backend as a request would."""
    with context.opened() as backend:
        applied = list(backend.migrate())
        backend.get(Get(bytes(32)))  # a backend without migrations has not been called yet
    said = f"applied {', '.join(applied)}" if applied else "nothing to apply"
    context.write(as_text({"applied": applied}) if context.options.json else said)
    return ExitCode.DONE


def ledger(context: Context) -> int:
    """``ledger``: print the SQL script that creates the ledger's tables in one dialect."""
    context.write(schema(context.options.dialect).rstrip())
    return ExitCode.DONE


# From the arguments of a command to a record: by a record id, or by a client's key and its caller.

_HINT = (
    "for a client's key, name the application (--app module:attribute), or its caller (--user, --authorization or "
    "--scope)"
)
_WHOLE = 64
_FIELDS = ("user", "tenant", "authorization", "scope", "host", "application", "method", "path")


def add_caller(parser: argparse.ArgumentParser) -> None:
    """Add the options that say whose key it is. Each is needed only where the application's policy depends on it."""
    who = parser.add_argument_group("whose key it is, where KEY is a client's key")
    who.add_argument("--user", metavar="ID", help="the user's id, as the framework has it")
    who.add_argument(
        "--authorization", metavar="VALUE", help="the Authorization header; - reads it from standard input"
    )
    who.add_argument("--scope", metavar="NAME", help="what the application's scope= returns")
    who.add_argument("--session", metavar="NAME=ID", type=_entry, action="append", help="an entry of the session")
    who.add_argument("--tenant", metavar="NAME", help="the tenant")
    who.add_argument("--host", metavar="HOST", help="the Host header, with scope_by_host")
    who.add_argument("--application", metavar="NAME", help="application= of the policy")
    who.add_argument("--method", metavar="METHOD", help="of the request, with scope_by_route or rules")
    who.add_argument("--path", metavar="PATH", help="of the request, with scope_by_route or rules")


def _entry(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no entry of a session; write name=id")
    return name, value


def caller_of(context: Context) -> dict[str, Any]:
    """The caller that the options name, as keyword arguments of ``operations.Who``."""
    options = context.options
    who = {name: value for name in _FIELDS if (value := getattr(options, name)) is not None}
    if options.session:
        who["session"] = dict(options.session)
    if who.get("authorization") == "-":
        who["authorization"] = sys.stdin.readline().rstrip("\r\n")
    return who


def application_of(context: Context, who: dict[str, Any]) -> object:
    """The application; without one a default policy, for which a user or a scope is enough."""
    if context.application is not None:
        return context.application.of
    given: str | None = who.get("scope")
    return IdempotencyPolicy() if given is None else IdempotencyPolicy(scope=lambda request: given)


def find(context: Context, backend: Backend) -> Record:
    """The record that a command names.

    Without a caller, a text that may be a record id is tried as one first. Raises what ``operations.find_record`` and
    ``operations.find_key`` raise.
    """
    text: str = context.options.record
    who = caller_of(context)
    by_id = operations.is_record_id(text.strip().lower())
    if context.application is None and not who:
        if not by_id:
            raise RecordUnknown(f"{text[:80]!r} is not a record id (4 to 64 hexadecimal digits); {_HINT}")
        return operations.find_record(backend, text)
    if by_id and (not who or len(text.strip()) == _WHOLE):
        try:
            return operations.find_record(backend, text)
        except RecordUnknown as error:
            if len(text.strip()) == _WHOLE:
                raise
            return _by_key(context, backend, text, who, f"{error}; and as a client's key: ")
    return _by_key(context, backend, text, who)


def _by_key(context: Context, backend: Backend, text: str, who: dict[str, Any], before: str = "") -> Record:
    """The record of a client's key. ``before``: the beginning of the error message."""
    try:
        return operations.find_key(backend, application_of(context, who), text, **who)
    except RecordUnknown as error:
        raise RecordUnknown(f"{before}{error}") from error
