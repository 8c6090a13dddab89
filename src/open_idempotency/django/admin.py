"""The admin pages of the ``django://`` backend: they show what is stored under which key, and can forget it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import (
    Case,
    CharField,
    Count,
    FloatField,
    IntegerField,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Value,
    When,
)
from django.db.models.functions import Coalesce, Length
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from open_idempotency.backend import Status
from open_idempotency.backends._shared.sql_verbs import RECORD_VERSION
from open_idempotency.decisions import State
from open_idempotency.django import conf
from open_idempotency.django.models import LedgerStage, Record, Stage
from open_idempotency.exceptions import IdempotencyError

if TYPE_CHECKING:
    _RecordAdmin = admin.ModelAdmin[Record]
    Records = QuerySet[Record, Record]
else:
    _RecordAdmin = admin.ModelAdmin


UNREADABLE = "unreadable"

#: names on the admin pages: the states of the decision table, and two for rows that no call acts upon
NAMES: Mapping[str, str] = {
    "running": State.ALIVE.value,
    "abandoned": State.ABANDONED.value,
    "completed": State.COMPLETED.value,
    "failed": State.FAILED.value,
    "final": State.FINAL.value,
    "expired": "expired",
    "unreadable": UNREADABLE,
}


def conditions(now: float) -> dict[str, Q]:
    """Each state's condition, in the order in which they are to be tried."""
    running, failed = Q(status=Status.IN_PROGRESS), Q(status=Status.FAILED)
    return {
        "unreadable": ~Q(record_version=RECORD_VERSION),
        "expired": Q(expires_at__lte=now),
        "completed": Q(status=Status.COMPLETED),
        "running": running & Q(lease_end__gt=now),
        "abandoned": running,
        "final": failed & Q(final=True),
        "failed": failed,
    }


def state_at(now: float) -> Case:
    """The state's name, as an annotation."""
    cases = [When(condition, then=Value(NAMES[name])) for name, condition in conditions(now).items()]
    return Case(*cases, default=Value(UNREADABLE), output_field=CharField())


_AGES = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
_SHORT_ID = 12
_LONGEST_ID = 128
_FORGOTTEN_AT_ONCE = 1000


class _Database(NamedTuple):
    """The database of the records, and its time: seconds since 1970 on the clock that decides about leases."""

    alias: str
    now: float


def _database(request: HttpRequest) -> _Database | None:
    """The database of the records, read once for each request; None if another backend holds the records."""
    if not hasattr(request, "_open_idempotency_database"):
        with conf.opened() as backend:
            found = None if backend is None else _Database(backend.alias, backend.now())
        setattr(request, "_open_idempotency_database", found)  # noqa: B010 (not an attribute that types know)
    database: _Database | None = getattr(request, "_open_idempotency_database")  # noqa: B009 (as it was set)
    return database


class StateFilter(admin.SimpleListFilter):
    """By state."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """All states."""
        return list(NAMES.items())

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """The records in the chosen state."""
        name = NAMES.get(self.value() or "")
        return queryset if name is None else queryset.filter(state=name)


class AgeFilter(admin.SimpleListFilter):
    """By the time since the latest attempt began."""

    title = "age"
    parameter_name = "age"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The last minute, hour and day, and before."""
        return [*((name, f"the last {name}") for name in _AGES), ("older", "older than a day")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """The records of the chosen age."""
        database, age = _database(request), self.value()
        if database is None or age is None:
            return queryset
        if age == "older":
            return queryset.filter(claimed_at__lt=database.now - _AGES["day"])
        return queryset.filter(claimed_at__gte=database.now - _AGES[age]) if age in _AGES else queryset


@admin.register(Record)
class RecordAdmin(_RecordAdmin):
    """Records by digest, as events and logs name them. Since 0.1."""

    list_display = ("digest", "state", "age", "attempt", "lease_ends", "expires", "stage_count")
    list_filter = (StateFilter, AgeFilter)
    # An index has this order.
    ordering = ("-expires_at",)
    search_fields = ("record_id",)
    search_help_text = "The beginning of a digest"
    show_full_result_count = False
    actions = ("forget",)
    fields = (
        "record_id",
        "state",
        "attempt",
        "token",
        "claimed",
        "lease_ends",
        "expires",
        "stored_response",
        "stages",
        "ledger",
    )
    readonly_fields = fields

    # Who may

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Whether to list the application: only if its tables are in use."""
        return super().has_module_permission(request) and _database(request) is not None

    def has_view_permission(self, request: HttpRequest, obj: Record | None = None) -> bool:
        """With ``open_idempotency.view_record``."""
        return super().has_view_permission(request, obj) and _database(request) is not None

    def has_add_permission(self, request: HttpRequest) -> bool:
        """False: only the backend writes records."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Record | None = None) -> bool:
        """False: only the backend writes records."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Record | None = None) -> bool:
        """False: Django's own deletion knows neither the stages nor the locks."""
        return False

    def has_forget_permission(self, request: HttpRequest) -> bool:
        """With ``open_idempotency.delete_record``."""
        user: Any = request.user
        return bool(user.has_perm("open_idempotency.delete_record")) and _database(request) is not None

    # What is read

    def get_queryset(self, request: HttpRequest) -> Records:
        """The records of the backend's database, without their stored content."""
        database = _database(request)
        if database is None:
            none: Records = super().get_queryset(request).none()
            return none
        stages = Stage.objects.filter(record_id=OuterRef("record_id")).order_by().values("record_id")
        counted: Any = Subquery(stages.annotate(count=Count("id")).values("count"), output_field=IntegerField())
        found: Any = super().get_queryset(request).using(database.alias).defer("response", "fingerprint", "owner")
        records: Records = found.annotate(
            now=Value(database.now, output_field=FloatField()),
            state=state_at(database.now),
            stage_count=Coalesce(counted, 0),
            size=Length("response"),
        )
        return records

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """The records whose digest begins with the search term."""
        begin = search_term.strip().lower()
        if not begin:
            return queryset, False
        if len(begin) > _LONGEST_ID or set(begin) - set("0123456789abcdef"):
            return queryset.none(), False
        last = begin + "f" * (_LONGEST_ID - len(begin))
        return queryset.filter(record_id__gte=begin + "0" * (len(begin) % 2), record_id__lte=last), False

    # What is shown

    @admin.display(description="record", ordering="record_id")
    def digest(self, record: Any) -> str:
        """The digest as events and logs show it."""
        return str(record.record_id[:_SHORT_ID])

    @admin.display(ordering="state")
    def state(self, record: Any) -> str:
        """The state at the time of the database's clock."""
        return str(record.state)

    @admin.display(ordering="-claimed_at")
    def age(self, record: Any) -> str:
        """The time since the latest attempt began."""
        return str(timedelta(seconds=max(0, int(record.now - record.claimed_at))))

    @admin.display(description="latest attempt", ordering="claimed_at")
    def claimed(self, record: Any) -> str:
        """When the latest attempt began."""
        return _moment(record.claimed_at)

    @admin.display(description="lease", ordering="lease_end")
    def lease_ends(self, record: Any) -> str:
        """When the lease ends or ended."""
        return _moment(record.lease_end)

    @admin.display(ordering="expires_at")
    def expires(self, record: Any) -> str:
        """When the key is forgotten."""
        return _moment(record.expires_at)

    @admin.display(description="stages")
    def stage_count(self, record: Any) -> int:
        """How many stages are on record."""
        return int(record.stage_count)

    @admin.display(description="stored response")
    def stored_response(self, record: Any) -> str:
        """The size of the stored response."""
        return "none" if record.size is None else f"{record.size} bytes"

    @admin.display(description="stages")
    def stages(self, record: Any) -> SafeString:
        """The names and sizes of the stages, in order."""
        found = Stage.objects.using(record._state.db).filter(record_id=record.record_id).order_by("id")
        named = found.annotate(size=Length("frame")).values_list("name", "stage_key", "size")
        return _listed((_text(name), _text(key), size) for name, key, size in named)

    @admin.display(description="stages in the ledger")
    def ledger(self, record: Any) -> SafeString:
        """The stages that were committed with rows of the application in this database."""
        found = LedgerStage.objects.using(record._state.db).filter(record_id=record.record_id).order_by("id")
        return _listed(found.annotate(size=Length("frame")).values_list("name", "stage_key", "size"))

    # What is done

    @admin.action(description="Forget the selected records", permissions=["forget"])
    def forget(self, request: HttpRequest, queryset: Any) -> HttpResponseBase | None:
        """Ask for confirmation; then delete each record through the backend, and log it in the admin's history."""
        records = list(queryset[: _FORGOTTEN_AT_ONCE + 1])
        if len(records) > _FORGOTTEN_AT_ONCE:
            self.message_user(request, f"At most {_FORGOTTEN_AT_ONCE} records at once.", messages.ERROR)
            return None
        if request.POST.get("confirmed") != "yes":
            return self._ask(request, records)
        self._forget(request, records)
        return None

    def _ask(self, request: HttpRequest, records: list[Any]) -> HttpResponseBase:
        context = {
            **self.admin_site.each_context(request),
            "title": "Forget these records?",
            "opts": self.opts,
            "records": records,
            "state_running": NAMES["running"],
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/open_idempotency/forget_confirmation.html", context)

    def _forget(self, request: HttpRequest, records: list[Any]) -> None:
        with conf.opened() as backend:
            forgotten: list[Any] = []
            try:
                for record in records if backend is not None else ():
                    assert backend is not None
                    backend.delete(bytes.fromhex(record.record_id))
                    forgotten.append(record)
            except IdempotencyError as error:
                self.message_user(request, f"Not all could be forgotten: {error}", messages.ERROR)
        if forgotten:
            self._log(request, forgotten)
            self.message_user(request, f"Forgotten: {len(forgotten)}", messages.SUCCESS)

    def _log(self, request: HttpRequest, records: list[Any]) -> None:
        site: Any = self
        # Django 5.1 has renamed it.
        if hasattr(site, "log_deletions"):
            site.log_deletions(request, records)
            return
        for record in records:
            site.log_deletion(request, record, str(record))


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "never"


def _text(raw: Any) -> str:
    return bytes(raw).decode("utf-8", "replace")


def _listed(stages: Any) -> SafeString:
    rows = [(name, f" ({key})" if key else "", "no value yet" if size is None else size) for name, key, size in stages]
    if not rows:
        return format_html("{}", "none")
    return format_html("<ol>{}</ol>", format_html_join("", "<li>{}{}: {} bytes</li>", rows))
