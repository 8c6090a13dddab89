"""Short bytes as a column that may be a key, which Django's ``BinaryField`` may not be (MySQL indexes no long blob).

In Python the value is hexadecimal text, so that it can be part of a URL of the admin pages, and be read aloud.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import models

# Django's own class takes no parameters; what describes it to type checkers does.
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
        """The text of a value from anywhere. Raises ``ValidationError`` where it is not hexadecimal."""
        if value is None:
            return None
        if not isinstance(value, str):
            return bytes(value).hex()
        try:
            return bytes.fromhex(value).hex()
        except ValueError:
            raise ValidationError(f"{value!r:.80} is not hexadecimal.", code="invalid") from None

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> str | None:
        """The text of what a row holds."""
        return None if value is None else bytes(value).hex()

    def get_prep_value(self, value: Any) -> bytes | None:
        """The bytes of a value."""
        text = self.to_python(super().get_prep_value(value))
        return None if text is None else bytes.fromhex(text)

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        """The bytes as the driver wants them."""
        value = value if prepared else self.get_prep_value(value)
        return None if value is None else connection.Database.Binary(value)

    def get_placeholder(self, value: Any, compiler: Any, connection: Any) -> Any:
        """The placeholder that marks bytes for MySQL; Django before 6.1 calls this."""
        return connection.ops.binary_placeholder_sql(value)

    def get_placeholder_sql(self, value: Any, compiler: Any, connection: Any) -> Any:
        """The placeholder that marks bytes for MySQL, and its parameters; Django 6.1 and later call this."""
        return connection.ops.binary_placeholder_sql(value, compiler)

    def value_to_string(self, obj: models.Model) -> str:
        """The text that a dump holds."""
        return str(self.value_from_object(obj))
