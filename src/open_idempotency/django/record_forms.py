"""The forms of the admin pages: finding a key of a caller, resolving a stage, and confirmations."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from open_idempotency.operations import NOT_DONE

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
