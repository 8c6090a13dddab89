"""What a claim says about itself, for operators."""

from __future__ import annotations

from django.db import migrations

from open_idempotency.django.models import DigestField


class Migration(migrations.Migration):
    """Adds one column. Workers of the version before go on working on the table, and leave it NULL."""

    dependencies = [("open_idempotency", "0001_records_and_ledger")]

    operations = [
        migrations.AddField(
            model_name="record",
            name="about",
            field=DigestField(max_length=512, null=True),
        ),
    ]
