"""Permissions of the admin pages: to release a record, and to resolve a stage of it."""

from __future__ import annotations

from django.db import migrations


class Migration(migrations.Migration):
    """Changes no table. Django makes the permissions when the migrations of a database are done."""

    dependencies = [("open_idempotency", "0002_about")]

    operations = [
        migrations.AlterModelOptions(
            name="record",
            options={
                "default_permissions": ("view", "delete"),
                "permissions": [
                    ("release_record", "Can free the key of a dead worker"),
                    ("resolve_record", "Can say what became of a stage in doubt"),
                ],
            },
        ),
    ]
