"""The admin pages on which an operator finds a record, reads it, and frees its key.

They use ``open_idempotency.operations``, so they work with every backend that ``IDEMPOTENCY_BACKEND`` may name. No page
shows a stored response or the value of a stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import wraps
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.handlers.base import BaseHandler
from django.db import DatabaseError, connections, transaction
from django.db.models.functions import Length
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from open_idempotency import operations
from open_idempotency.backend import Backend, Get
from open_idempotency.backend import Record as StoredRecord
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.cli.context import lease_text, state_text
from open_idempotency.decisions import State, state_of
from open_idempotency.django import conf
from open_idempotency.django.middleware import protected_by
from open_idempotency.django.models import LedgerStage, Record
from open_idempotency.exceptions import (
    BackendUnavailable,
    IdempotencyError,
    KeyRejected,
    RecordUnreadable,
    StageValueError,
)
from open_idempotency.operations import (
    NOT_DONE,
    ExitCode,
    OperationRefused,
    RecordChanged,
    RecordUnknown,
    RecordView,
    SeveralRecords,
    duration,
)
from open_idempotency.policy import IdempotencyPolicy

#: the permission for each operation
PERMISSIONS = {"release": "release_record", "resolve": "resolve_record", "forget": "delete_record"}
_STATUSES = {
    ExitCode.UNKNOWN: 404,
    ExitCode.USAGE: 400,
    ExitCode.LIVE: 409,
    ExitCode.STATE: 409,
    ExitCode.DOWN: 503,
    ExitCode.DENIED: 503,
    ExitCode.UNREADABLE: 409,
    ExitCode.FAILED: 500,
}
_SHOWN = 20
_UNREADABLE = "unreadable"
_FREE = (State.COMPLETED, State.ABSENT)


@dataclass(frozen=True)
class Seen:
    """A record as a page shows it. ``view``: None if this version cannot read it; ``trouble`` has the reason.

    ``mark``: a hidden field of the forms, so that a confirmation counts only for this attempt. ``stored``: None for a
    record of a newer version. ``is_alive``: whether an attempt may hold it, so that forgetting it needs force.
    """

    record: str
    view: RecordView | None
    mark: str
    trouble: str = ""
    stored: StoredRecord | None = None
    is_alive: bool = True

    @property
    def state(self) -> str:
        """The state in words."""
        return _UNREADABLE if self.view is None else state_text(self.view)

    @property
    def can_release(self) -> bool:
        """Whether the key can be freed: it is neither free already nor completed."""
        view = self.view
        if view is None or view.state in _FREE:
            return False
        return not (view.state is State.FAILED and view.attempt == 0)


def look(backend: Backend, record: str, policy: IdempotencyPolicy | None) -> Seen | None:
    """The live record with this id in hexadecimal digits, or None. Raises ``BackendUnavailable``."""
    try:
        record_id = bytes.fromhex(record)
    except ValueError:
        return None
    try:
        found = backend.get(Get(record_id))
        return None if found is None else _seen(backend, found, policy)
    except RecordUnreadable as error:
        return Seen(record, None, _UNREADABLE, str(error))


def _seen(backend: Backend, stored: StoredRecord, policy: IdempotencyPolicy | None) -> Seen:
    now, trouble = backend.now(), ""
    view: RecordView | None = None
    # If the keys of the settings do not decrypt it, the rest can still be shown.
    for opens in (None,) if policy is None else (policy, None):
        try:
            view = operations.view_of(stored, now, policy=opens)
            break
        except RecordUnreadable as error:
            trouble = trouble or str(error)
    alive = state_of(stored, now) is State.ALIVE
    return Seen(stored.record_id.hex(), view, _mark(stored), trouble, stored, alive)


def _mark(record: StoredRecord) -> str:
    """A text that differs for every attempt of a key, even after the record was forgotten and created again."""
    parts = (record.record_id.hex(), record.owner.hex(), record.token, int(record.status), record.claimed_at)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def forget(backend: Backend, seen: Seen, *, force: bool) -> None:
    """Forget a record as a page has shown it. Raises ``RecordAlive``, ``RecordChanged``, ``BackendUnavailable``."""
    if seen.stored is not None:
        operations.forget(backend, seen.stored, force=force)
        return
    if not force:
        raise operations.RecordAlive(
            f"record {seen.record[:12]} cannot be read, so an attempt may hold it; use force if it is to be forgotten"
        )
    backend.delete(bytes.fromhex(seen.record))


def application() -> Any:
    """The ``application`` argument of operations: the engine of the settings, and its covered routes."""
    return protected_by(BaseHandler())


def moment(seconds: float) -> str:
    """A time of the backend's clock as text, in UTC. ``seconds``: since 1970."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "never"


View = Callable[..., HttpResponse]


def _explained(view: View) -> View:
    """The view, with an error page if the backend is down or the settings are wrong."""

    @wraps(view)
    def explained(self: RecordPages, request: HttpRequest, *args: str, **named: str) -> HttpResponse:
        try:
            return view(self, request, *args, **named)
        except IdempotencyError as error:
            return self.trouble(request, error)

    return explained


class RecordPages:
    """The pages of one ``ModelAdmin``, which checks permissions and writes the history."""

    def __init__(self, model_admin: Any) -> None:
        self._admin = model_admin

    # Finding

    @_explained
    def find(self, request: HttpRequest) -> HttpResponse:
        """Ask for a key or a record, and redirect to the record, or list several records to choose from."""
        self._must(request, "view_record")
        form = FindForm(request.POST if request.method == "POST" else None)
        several: list[Seen] = []
        status = 200
        if form.is_bound and form.is_valid():
            with conf.opened_any() as backend:
                try:
                    record = _found(backend, form)
                    return HttpResponseRedirect(self.url("change", record.record_id.hex()))
                except SeveralRecords as error:
                    several = self._several(backend, error)
                    form.add_error(None, _without_ids(error))
                except BackendUnavailable:
                    raise
                except IdempotencyError as error:
                    # such as a malformed key, or a path that is not covered
                    form.add_error(None, _sentence(error))
                    status = _status(error) if isinstance(error, OperationRefused | RecordUnreadable) else 400
        elif form.is_bound:
            status = 400
        context = {
            "form": form,
            "several": several,
            "listed": self._admin.lists(request),
            "memory": conf.is_in_memory(),
        }
        return self._page(request, "find", "Find a key", status, **context)

    def _several(self, backend: Backend, error: SeveralRecords) -> list[Seen]:
        policy = conf.configured_policy()
        found = (look(backend, record, policy) for record in error.record_ids[:_SHOWN])
        return [seen for seen in found if seen is not None]

    # Reading

    @_explained
    def record(self, request: HttpRequest, record: str) -> HttpResponse:
        """One record: its state, what a retry gets, its stages, and the operations that this user may perform."""
        self._must(request, "view_record")
        with conf.opened_any() as backend:
            policy = conf.configured_policy()
            seen = look(backend, record, policy)
            if seen is None:
                return self._gone(request, record)
            ledger = _ledger(backend, policy, record)
        view = seen.view
        context = {
            "seen": seen,
            "facts": [] if view is None else facts(view),
            "sentences": () if view is None else operations.explain(view, policy),
            "timeline": [] if view is None else timeline(view),
            "ledger": ledger,
            "may": {name: self._may(request, permission) for name, permission in PERMISSIONS.items()},
            "memory": conf.is_in_memory(),
        }
        return self._page(request, "record", f"Record {record[:12]}", 200, **context)

    # Changing

    @_explained
    def release(self, request: HttpRequest, record: str) -> HttpResponse:
        """Free the key of an attempt whose worker is dead, after a confirmation."""

        def act(backend: Backend, seen: Seen, form: Any) -> str:
            operations.release(backend, _readable(seen).seen)
            return "Released: the key is free, and its stages stay."

        return self._confirmed(request, record, "release", lambda seen, data: SeenForm(data), act)

    @_explained
    def forget(self, request: HttpRequest, record: str) -> HttpResponse:
        """Delete a record, after a confirmation; with force if an attempt may hold it."""

        def act(backend: Backend, seen: Seen, form: Any) -> str:
            forget(backend, seen, force=form.cleaned_data.get("force", False))
            return "Forgotten: the next request with the key runs again."

        def form_of(seen: Seen, data: Any) -> Any:
            return (ForgetForm if seen.is_alive else SeenForm)(data)

        return self._confirmed(request, record, "forget", form_of, act)

    @_explained
    def resolve(self, request: HttpRequest, record: str) -> HttpResponse:
        """Resolve a stage that is in doubt."""
        stage = (request.POST if request.method == "POST" else request.GET).get("stage", "")
        key = (request.POST if request.method == "POST" else request.GET).get("stage_key", "")

        def act(backend: Backend, seen: Seen, form: Any) -> str:
            found, policy = form.cleaned_data["found"], conf.configured_policy()
            operations.resolve(backend, _readable(seen).seen, stage, key or None, found=found, policy=policy)
            return f"Resolved stage {stage}: the key is free, and the next request resumes."

        def form_of(seen: Seen, data: Any) -> Any:
            return ResolveForm(data, initial={"stage": stage, "stage_key": key})

        return self._confirmed(request, record, "resolve", form_of, act, stage=stage, stage_key=key)

    def _confirmed(
        self,
        request: HttpRequest,
        record: str,
        name: str,
        form_of: Callable[[Seen, Any], Any],
        act: Callable[[Backend, Seen, Any], str],
        **more: Any,
    ) -> HttpResponse:
        """Show the confirmation. When it is posted, act if the record has not changed since."""
        self._must(request, "view_record")
        self._must(request, PERMISSIONS[name])
        posted = request.method == "POST"
        status = 200
        with conf.opened_any() as backend:
            policy = conf.configured_policy()
            seen = look(backend, record, policy)
            if seen is None:
                return self._gone(request, record)
            form = form_of(seen, request.POST if posted else None)
            if posted and form.is_valid():
                try:
                    _check(seen, form.cleaned_data["seen"])
                    said = act(backend, seen, form)
                except (OperationRefused, StageValueError) as error:
                    form.add_error(None, _sentence(error))
                    status = _status(error) if isinstance(error, OperationRefused) else 400
                    seen = look(backend, record, policy) or seen
                else:
                    return self._done(request, record, name, said)
        if posted and status == 200:
            status = 400
        context = {"form": form, "seen": seen, "operation": name, "policy": policy, **more}
        if seen.view is not None:
            context |= {"facts": facts(seen.view), "sentences": operations.explain(seen.view, policy)}
        return self._page(request, "confirm", f"{name.capitalize()} record {record[:12]}?", status, **context)

    def _done(self, request: HttpRequest, record: str, name: str, said: str) -> HttpResponse:
        self._admin.log_operation(request, Record(record_id=record), name, said)
        self._admin.message_user(request, said, messages.SUCCESS)
        return HttpResponseRedirect(self.url("changelist") if name == "forget" else self.url("change", record))

    # What all of them need

    def url(self, name: str, *args: str) -> str:
        """The URL of one of these pages."""
        named = f"{self._admin.admin_site.name}:open_idempotency_record_{name}"
        return reverse(named, args=args, current_app=self._admin.admin_site.name)

    def trouble(self, request: HttpRequest, error: IdempotencyError) -> HttpResponse:
        """The page for a backend that cannot be read."""
        return self._page(request, "trouble", "The records cannot be read", _status(error), error=_sentence(error))

    def _page(self, request: HttpRequest, template: str, title: str, status: int, **context: Any) -> TemplateResponse:
        whole = {
            **self._admin.admin_site.each_context(request),
            "title": title,
            "opts": self._admin.opts,
            "pages": {name: self.url(name) for name in ("changelist", "find")},
            **context,
        }
        request.current_app = self._admin.admin_site.name  # {% url %} reads it
        return TemplateResponse(request, f"admin/open_idempotency/{template}.html", whole, status=status)

    def _gone(self, request: HttpRequest, record: str) -> HttpResponse:
        said = f"No record {record[:12]}: it was never created, was released or forgotten, or has expired."
        self._admin.message_user(request, said, messages.WARNING)
        return HttpResponseRedirect(self.url("changelist"))

    def _may(self, request: HttpRequest, permission: str) -> bool:
        user: Any = request.user
        return bool(user.has_perm(f"open_idempotency.{permission}"))

    def _must(self, request: HttpRequest, permission: str) -> None:
        if not self._may(request, permission):
            raise PermissionDenied


def _found(backend: Backend, form: FindForm) -> StoredRecord:
    """The record of a key, or with this id. Without a caller, a text that may be an id is tried as an id first."""
    text, who, before = form.cleaned_data["key"], form.who(), ""
    if not who and operations.is_record_id(text.strip().lower()):
        try:
            return operations.find_record(backend, text)
        except RecordUnknown as error:
            before = f"{error}; and as a client's key: "
    of = application()
    try:
        if not operations.Who(**who).named and not form.cleaned_data["everyone"]:
            return _of_anonymous(backend, of, text, who)
        return operations.find_key(backend, of, text, **who)
    except (RecordUnknown, KeyRejected) as error:
        if not before:
            raise
        raise RecordUnknown(f"{before}{error}") from error


def _of_anonymous(backend: Backend, of: Any, key: str, who: dict[str, Any]) -> StoredRecord:
    """The record of an anonymous caller; unlike ``operations.find_key`` it never reads all records."""
    found = [record for each in operations.locate(of, key, **who) if (record := backend.get(Get(each.record_id)))]
    if not found:
        raise RecordUnknown("no anonymous caller has a record of this key; name the caller, or choose All callers")
    if len(found) > 1:
        raise SeveralRecords("several", [record.record_id.hex() for record in found])
    return found[0]


def _without_ids(error: SeveralRecords) -> str:
    return (
        f"{len(error.record_ids)} records match, of several callers or routes. Choose one, or say whose key it is: the "
        "user, the credentials or the scope, and the path."
    )


def _check(seen: Seen, mark: str) -> None:
    if seen.mark != mark:
        raise RecordChanged(
            f"record {seen.record[:12]} has changed since this page was made: an attempt has begun or ended. Nothing "
            "was done. Look again, and confirm again if it is still right"
        )


def _readable(seen: Seen) -> RecordView:
    if seen.view is None:
        raise OperationRefused(f"record {seen.record[:12]} cannot be read: {seen.trouble}")
    return seen.view


def _status(error: IdempotencyError) -> int:
    return _STATUSES.get(operations.exit_code_of(error), 400)


def _sentence(error: IdempotencyError) -> str:
    said = str(error)
    return said[:1].upper() + said[1:]


def facts(view: RecordView) -> list[tuple[str, str]]:
    """The facts about a record, in the order of the page."""
    seen, response = view.seen, view.response
    shown = [
        ("Record", view.record),
        ("State", state_text(view)),
        ("Attempt", str(view.attempt)),
        ("Begun", f"{moment(seen.claimed_at)}, {duration(view.age)} ago"),
        ("Lease", f"{moment(seen.lease_end)}, {lease_text(view)}"),
        ("Expires", f"{moment(seen.expires_at)}, in {duration(view.expires_in)}"),
        ("Route", f"{view.method} {view.route}".strip()),
        ("Caller", view.caller),
        ("Holder", view.holder),
    ]
    if view.state not in (State.ALIVE, State.ABANDONED):
        shown = [each for each in shown if each[0] != "Lease"]
    if response is not None:
        status = "" if response.status is None else f"status {response.status}, "
        encrypted = ", encrypted" if response.encrypted else ""
        shown.append(("Stored response", f"{status}{response.size} bytes{encrypted}"))
    return [each for each in shown if each[1]]


def timeline(view: RecordView) -> list[dict[str, Any]]:
    """The stages in the order in which they began."""
    doubt = set(view.in_doubt)
    return [
        {
            "number": number,
            "name": stage.name,
            "key": stage.key,
            "found": "in doubt" if stage in doubt else stage.found,
            "size": f"{stage.size} bytes" if stage.size else "",
            "in_doubt": stage in doubt,
        }
        for number, stage in enumerate(view.stages, 1)
    ]


def _ledger(backend: Backend, policy: IdempotencyPolicy, record: str) -> list[tuple[str, str, str]]:
    """The stages that were committed with rows of the application, from every database that may have a ledger."""
    aliases = {backend.alias} if isinstance(backend, DjangoBackend) else set[str]()
    if isinstance(policy.ledger, str) and policy.ledger in connections:
        aliases.add(policy.ledger)
    found: list[tuple[str, str, str]] = []
    for alias in sorted(aliases):
        rows = LedgerStage.objects.using(alias).filter(record_id=record).order_by("id").annotate(size=Length("frame"))
        try:
            with transaction.atomic(alias):  # a missing table must not break the request's transaction
                found += [
                    (name, key, "no value yet" if size is None else f"{size} bytes")
                    for name, key, size in rows.values_list("name", "stage_key", "size")
                ]
        except DatabaseError as error:
            found.append((f"the ledger of {alias} cannot be read", "", type(error).__name__))
    return found


# The forms of the admin pages: finding a key of a caller, resolving a stage, and confirmations.

_WHO = ("user", "tenant", "authorization", "scope", "host", "application", "method", "path")
_NAMING = ("user", "session", "authorization", "scope")
_LONGEST = 8192


def _text(label: str, hint: str = "", **more: Any) -> forms.CharField:
    return forms.CharField(label=label, help_text=hint, required=False, max_length=_LONGEST, **more)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not valid JSON")


class FindForm(forms.Form):
    """A client's key and its caller, or a record id. It is posted, so that no URL contains a key."""

    key = forms.CharField(
        label="Key or record",
        max_length=_LONGEST,
        help_text="The idempotency key as the client reports it, or a record id or its beginning, as logs show it",
    )
    user = _text("User", "The id of the user, such as the primary key")
    authorization = _text(
        "Authorization",
        "The value of the header, if it identifies the caller",
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
    )
    session = _text("Session", "An entry that names the caller, as name=id, such as user_id=7")
    scope = _text("Scope", "What the scope= of the settings returns for the caller")
    tenant = _text("Tenant", "If there are tenants")
    host = _text("Host", "The Host header, with scope_by_host")
    application = _text("Application", "Instead of IDEMPOTENCY_APPLICATION")
    method = _text("Method", "Of the request, with scope_by_route or rules")
    path = _text("Path", "Of the request, with scope_by_route or rules")

    everyone = forms.BooleanField(
        required=False,
        label="All callers",
        help_text="List the records of all callers who used this key. All records are read, so it may take minutes",
    )

    def clean_session(self) -> dict[str, str] | None:
        """The entry; None if the field is empty."""
        text: str = self.cleaned_data["session"]
        if not text:
            return None
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValidationError("This is not an entry of a session. Write name=id.")
        return {name: value}

    def clean(self) -> dict[str, Any]:
        """Refuse a form that names a caller and asks for all callers."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("everyone") and any(cleaned.get(name) for name in _NAMING):
            self.add_error("everyone", "A caller is given. Clear this box, or the fields of the caller.")
        return cleaned

    def who(self) -> dict[str, Any]:
        """What is known about the caller, as keyword arguments of ``operations.Who``."""
        given = {name: self.cleaned_data[name] for name in _WHO if self.cleaned_data[name]}
        session = self.cleaned_data["session"]
        return {**given, "session": session} if session else given


class SeenForm(forms.Form):
    """A confirmation. ``seen`` is the record as the page showed it."""

    seen = forms.CharField(widget=forms.HiddenInput)


class ForgetForm(SeenForm):
    """The confirmation to forget a record that an attempt may hold."""

    force = forms.BooleanField(
        required=False,
        label="Forget it although an attempt may hold it. The attempt is not stopped, and may run beside the next one",
    )


class ResolveForm(SeenForm):
    """The outcome of a stage that is in doubt."""

    stage = forms.CharField(widget=forms.HiddenInput)
    stage_key = forms.CharField(widget=forms.HiddenInput, required=False, strip=False)
    outcome = forms.ChoiceField(
        label="What became of the stage?",
        widget=forms.RadioSelect,
        choices=[
            ("found", "It has happened. The value below becomes its value, and it does not run again"),
            ("not-done", "It has not happened, and will not. It runs again"),
        ],
    )
    value = forms.CharField(
        label="Value",
        required=False,
        widget=forms.Textarea(attrs={"rows": 4, "cols": 60}),
        help_text='As JSON, such as "ch_123" with its quotes, or null. It is not shown again',
    )

    def clean(self) -> dict[str, Any]:
        """Add ``found``: the value of the stage, or ``NOT_DONE``."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        outcome, text = cleaned.get("outcome"), cleaned.get("value", "")
        if outcome == "not-done":
            if text:
                self.add_error("value", "A stage that has not happened has no value. Leave this empty.")
            cleaned["found"] = NOT_DONE
        elif outcome == "found":
            try:
                cleaned["found"] = json.loads(text, parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                self.add_error("value", f'This is not JSON ({error}). A text needs quotes, as in "ch_123".')
        return cleaned
