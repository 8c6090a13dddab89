"""The tables of the ``django://`` backend and of the ledger, as models for migrations and the admin pages.

The backend and the ledger run their own statements on their own connections. Do not save objects through these models.
"""

# Only a plugin of mypy knows the types of the fields.
# mypy: disable-error-code="var-annotated"
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import models

# Django's class takes no type parameters at run time; its type stubs do.
if TYPE_CHECKING:
    _Field = models.Field[Any, Any]
else:
    _Field = models.Field


class DigestField(_Field):
    """At most ``max_length`` bytes, as hexadecimal text in Python. Since 0.1."""

    description = "Up to %(max_length)s bytes"

    def db_type(self, connection: Any) -> str:
        """The column's type."""
        types = {"postgresql": "bytea", "mysql": f"varbinary({self.max_length})"}
        return types.get(connection.vendor, "BLOB")

    def to_python(self, value: Any) -> str | None:
        """The hexadecimal text of a value. Raises ``ValidationError`` if it is not hexadecimal."""
        if value is None:
            return None
        if not isinstance(value, str):
            return bytes(value).hex()
        try:
            return bytes.fromhex(value).hex()
        except ValueError:
            raise ValidationError(f"{value!r:.80} is not hexadecimal.", code="invalid") from None

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> str | None:
        """The hexadecimal text of a column's bytes."""
        return None if value is None else bytes(value).hex()

    def get_prep_value(self, value: Any) -> bytes | None:
        """The bytes of a value."""
        text = self.to_python(super().get_prep_value(value))
        return None if text is None else bytes.fromhex(text)

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        """The bytes in the driver's type."""
        value = value if prepared else self.get_prep_value(value)
        return None if value is None else connection.Database.Binary(value)

    def get_placeholder(self, value: Any, compiler: Any, connection: Any) -> Any:
        """The placeholder that marks bytes for MySQL; Django before 6.1 calls this."""
        return connection.ops.binary_placeholder_sql(value)

    def get_placeholder_sql(self, value: Any, compiler: Any, connection: Any) -> Any:
        """The placeholder that marks bytes for MySQL, and its parameters; Django 6.1 and later call this."""
        return connection.ops.binary_placeholder_sql(value, compiler)

    def value_to_string(self, obj: models.Model) -> str:
        """The text for a dump."""
        return str(self.value_from_object(obj))


# The library's ids have 32 bytes; other users of the backend may have longer ones.
_LONGEST_ID = 512
_LONGEST_NAME = 200


class Record(models.Model):
    """One record of the ``django://`` backend. Times are seconds since 1970 on the database's clock."""

    record_id = DigestField("record", max_length=_LONGEST_ID, primary_key=True)
    record_version = models.IntegerField()
    fingerprint = DigestField(max_length=_LONGEST_ID)
    status = models.IntegerField()
    owner = DigestField(max_length=_LONGEST_ID)
    token = models.BigIntegerField()
    attempt = models.IntegerField()
    claimed_at = models.FloatField()
    lease_end = models.FloatField()
    ttl = models.FloatField("retention in seconds")
    expires_at = models.FloatField()
    final = models.BooleanField("failed for good")
    # Workers of a version that does not know it leave it NULL.
    about = DigestField(max_length=_LONGEST_ID, null=True)
    response = models.BinaryField(null=True)

    class Meta:
        """Records are listed and never added by hand: only the backend writes them."""

        app_label = "open_idempotency"
        db_table = "open_idempotency_django_records"
        default_permissions = ("view", "delete")
        permissions = [
            ("release_record", "Can free the key of a dead worker"),
            ("resolve_record", "Can say what became of a stage in doubt"),
        ]
        indexes = [models.Index(fields=["expires_at"], name="oi_records_by_expiry")]

    def __str__(self) -> str:
        """The digest, as events and logs show it."""
        return str(self.record_id)[:12]


class Stage(models.Model):
    """One stage of a record, in the order of ``id``."""

    record_id = DigestField(max_length=_LONGEST_ID)
    stage_id = DigestField(max_length=32)
    name = models.BinaryField()
    stage_key = models.BinaryField()
    frame = models.BinaryField()

    class Meta:
        """A stage is found by its record, and unique in it."""

        app_label = "open_idempotency"
        db_table = "open_idempotency_django_stages"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["record_id", "stage_id"], name="oi_stages_once")]

    def __str__(self) -> str:
        """The name of the stage."""
        return bytes(self.name).decode("utf-8", "replace")


class Reservation(models.Model):
    """One key that counts towards its caller's quota until ``ends``."""

    scope_id = DigestField(max_length=_LONGEST_ID)
    record_id = DigestField(max_length=_LONGEST_ID)
    ends = models.FloatField()

    class Meta:
        """Reservations are counted by caller."""

        app_label = "open_idempotency"
        db_table = "open_idempotency_django_reservations"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["scope_id", "record_id"], name="oi_reservations_once")]
        indexes = [
            models.Index(fields=["scope_id", "ends"], name="oi_reservations_of_scope"),
            models.Index(fields=["ends"], name="oi_reservations_by_end"),
        ]


class Scope(models.Model):
    """The row that is locked while a caller's keys are counted; needed until ``ends``."""

    scope_id = DigestField(max_length=_LONGEST_ID, primary_key=True)
    ends = models.FloatField()

    class Meta:
        """Rows are purged by their end."""

        app_label = "open_idempotency"
        db_table = "open_idempotency_django_scopes"
        default_permissions = ()
        indexes = [models.Index(fields=["ends"], name="oi_scopes_by_end")]


class LedgerEntry(models.Model):
    """A response that was committed together with the application's own rows; see ``open_idempotency.ledger``."""

    record_id = DigestField(max_length=64, primary_key=True)
    token = models.BigIntegerField()
    fingerprint = DigestField(max_length=128)
    response = models.BinaryField(null=True)
    expires_at = models.FloatField()

    class Meta:
        """The ledger's own names."""

        app_label = "open_idempotency"
        db_table = "open_idempotency_ledger"
        default_permissions = ()
        indexes = [models.Index(fields=["expires_at"], name="oi_ledger_by_expiry")]


class LedgerStage(models.Model):
    """One stage that was committed with the application's rows. Django needs a key of one column: ``id``."""

    record_id = DigestField(max_length=64)
    stage_id = DigestField(max_length=32)
    name = models.CharField(max_length=_LONGEST_NAME)
    stage_key = models.CharField(max_length=_LONGEST_NAME)
    frame = models.BinaryField(null=True)

    class Meta:
        """The ledger's own names."""

        app_label = "open_idempotency"
        db_table = "open_idempotency_ledger_stages"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["record_id", "stage_id"], name="oi_ledger_stages_once")]
