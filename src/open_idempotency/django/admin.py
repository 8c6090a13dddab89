"""The admin site's list of the records of ``django://``, with links to the pages of each record.

The pages of a record, and the one that finds a key, are in ``record_pages``; they work with every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
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
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import path

from open_idempotency.backend import Backend, Status
from open_idempotency.backends._shared.sql_verbs import RECORD_VERSION
from open_idempotency.decisions import State
from open_idempotency.django import conf
from open_idempotency.django.models import Record, Stage
from open_idempotency.django.record_pages import RecordPages, Seen, forget, look, moment
from open_idempotency.exceptions import IdempotencyError
from open_idempotency.operations import OperationRefused

if TYPE_CHECKING:
    _RecordAdmin = admin.ModelAdmin[Record]
    Records = QuerySet[Record, Record]
else:
    _RecordAdmin = admin.ModelAdmin


UNREADABLE = "unreadable"

#: names on the admin pages: the states of the decision table, and two for rows that no call changes
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
    """The condition of each state. They must be tried in this order."""
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
# The form has two fields for each record, and Django takes 1,000 fields at most (DATA_UPLOAD_MAX_NUMBER_FIELDS).
_FORGOTTEN_AT_ONCE = 400


class _Database(NamedTuple):
    """The database of the records, and its time in seconds since 1970. Its clock decides when leases end."""

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
        """The last minute, hour and day, and everything older."""
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
    search_help_text = "The beginning of a record id. For a client's key: Find a key"
    show_full_result_count = False
    actions = ("forget",)

    def __init__(self, model: type[Record], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        self._pages = RecordPages(self)

    def get_urls(self) -> list[Any]:
        """The URLs of the pages of a record, and of the page that finds a key."""

        def wrapped(view: Any) -> Any:
            return self.admin_site.admin_view(view)

        pages, name = self._pages, "open_idempotency_record"
        return [
            path("find/", wrapped(pages.find), name=f"{name}_find"),
            path("<str:record>/release/", wrapped(pages.release), name=f"{name}_release"),
            path("<str:record>/resolve/", wrapped(pages.resolve), name=f"{name}_resolve"),
            path("<str:record>/forget/", wrapped(pages.forget), name=f"{name}_forget"),
            *super().get_urls(),
        ]

    def lists(self, request: HttpRequest) -> bool:
        """Whether the records are in a database of the project, where they can be listed by state and by age."""
        return _database(request) is not None

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The list of records, or the page that finds one if another backend holds the records."""
        try:
            if self.has_view_permission(request) and not self.lists(request):
                return self._pages.find(request)
        except IdempotencyError as error:
            return self._pages.trouble(request, error)
        return super().changelist_view(request, extra_context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """The read-only page of a record. Other pages change it."""
        if request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        return self._pages.record(request, object_id)

    # Who may

    def has_view_permission(self, request: HttpRequest, obj: Record | None = None) -> bool:
        """True with the permission ``open_idempotency.view_record``."""
        return super().has_view_permission(request, obj) and _is_configured()

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
        """True with the permission ``open_idempotency.delete_record``."""
        user: Any = request.user
        return bool(user.has_perm("open_idempotency.delete_record")) and self.lists(request)

    # What is read

    def get_queryset(self, request: HttpRequest) -> Records:
        """The records in the backend's database, without stored responses and stage values."""
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

    @admin.display(description="lease", ordering="lease_end")
    def lease_ends(self, record: Any) -> str:
        """When the lease ends or ended."""
        return moment(record.lease_end)

    @admin.display(ordering="expires_at")
    def expires(self, record: Any) -> str:
        """When the key is forgotten."""
        return moment(record.expires_at)

    @admin.display(description="stages")
    def stage_count(self, record: Any) -> int:
        """How many stages are on record."""
        return int(record.stage_count)

    # What is done

    @admin.action(description="Forget the selected records", permissions=["forget"])
    def forget(self, request: HttpRequest, queryset: Any) -> HttpResponseBase | None:
        """Ask for confirmation, then forget each record that has not changed since it was shown.

        A record that an attempt may hold stays, unless forgetting it is confirmed separately.
        """
        chosen = [record.record_id for record in queryset[: _FORGOTTEN_AT_ONCE + 1]]
        if len(chosen) > _FORGOTTEN_AT_ONCE:
            self.message_user(request, f"At most {_FORGOTTEN_AT_ONCE} records at once.", messages.ERROR)
            return None
        try:
            with conf.opened_any() as backend:
                # Without the keys of the settings: no state depends on what is encrypted.
                seen = [each for record in chosen if (each := look(backend, record, None)) is not None]
                if request.POST.get("confirmed") == "yes":
                    self._forget(request, backend, seen)
                    return None
        except IdempotencyError as error:
            return self._pages.trouble(request, error)
        return self._ask(request, seen)

    def _ask(self, request: HttpRequest, seen: list[Seen]) -> HttpResponseBase:
        context = {
            **self.admin_site.each_context(request),
            "title": "Forget these records?",
            "opts": self.opts,
            "records": seen,
            "some_alive": any(each.is_alive for each in seen),
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/open_idempotency/forget_confirmation.html", context)

    def _forget(self, request: HttpRequest, backend: Backend, seen: list[Seen]) -> None:
        """Forget the records that have not changed since the page was shown, and report each of the others."""
        shown, force = set(request.POST.getlist("seen")), request.POST.get("force") == "yes"
        forgotten: list[Record] = []
        try:
            for each in seen:
                if f"{each.record}:{each.mark}" not in shown:
                    self.message_user(
                        request, f"Record {each.record[:_SHORT_ID]} has changed since it was shown.", messages.ERROR
                    )
                    continue
                try:
                    forget(backend, each, force=force)
                except OperationRefused as error:
                    self.message_user(request, f"Not forgotten: {error}", messages.ERROR)
                else:
                    forgotten.append(Record(record_id=each.record))
        finally:  # logged for records that were forgotten before the backend failed, too
            if forgotten:
                self._log_deletions(request, forgotten)
                self.message_user(request, f"Forgotten: {len(forgotten)}", messages.SUCCESS)

    def log_operation(self, request: HttpRequest, record: Record, name: str, said: str) -> None:
        """Write to the admin's history who changed a record, and how."""
        if name == "forget":
            self._log_deletions(request, [record])
        else:
            self.log_change(request, record, said)

    def _log_deletions(self, request: HttpRequest, records: list[Record]) -> None:
        site: Any = self
        # Django 5.1 has renamed it.
        if hasattr(site, "log_deletions"):
            site.log_deletions(request, records)
            return
        for record in records:
            site.log_deletion(request, record, str(record))


def _is_configured() -> bool:
    return getattr(settings, "IDEMPOTENCY_BACKEND", None) is not None
