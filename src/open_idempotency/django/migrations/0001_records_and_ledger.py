"""The tables of the ``django://`` backend and of the ledger."""

from __future__ import annotations

from django.db import migrations, models

from open_idempotency.django.models import DigestField


class Migration(migrations.Migration):
    """Creates six tables. Other applications refer to none of them."""

    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="LedgerEntry",
            fields=[
                (
                    "record_id",
                    DigestField(max_length=64, primary_key=True, serialize=False),
                ),
                ("token", models.BigIntegerField()),
                (
                    "fingerprint",
                    DigestField(max_length=128),
                ),
                ("response", models.BinaryField(null=True)),
                ("expires_at", models.FloatField()),
            ],
            options={
                "db_table": "open_idempotency_ledger",
                "default_permissions": (),
                "indexes": [models.Index(fields=["expires_at"], name="oi_ledger_by_expiry")],
            },
        ),
        migrations.CreateModel(
            name="LedgerStage",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                (
                    "record_id",
                    DigestField(max_length=64),
                ),
                ("stage_id", DigestField(max_length=32)),
                ("name", models.CharField(max_length=200)),
                ("stage_key", models.CharField(max_length=200)),
                ("frame", models.BinaryField(null=True)),
            ],
            options={
                "db_table": "open_idempotency_ledger_stages",
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("record_id", "stage_id"), name="oi_ledger_stages_once")
                ],
            },
        ),
        migrations.CreateModel(
            name="Record",
            fields=[
                (
                    "record_id",
                    DigestField(
                        max_length=512,
                        primary_key=True,
                        serialize=False,
                        verbose_name="record",
                    ),
                ),
                ("record_version", models.IntegerField()),
                (
                    "fingerprint",
                    DigestField(max_length=512),
                ),
                ("status", models.IntegerField()),
                ("owner", DigestField(max_length=512)),
                ("token", models.BigIntegerField()),
                ("attempt", models.IntegerField()),
                ("claimed_at", models.FloatField()),
                ("lease_end", models.FloatField()),
                ("ttl", models.FloatField(verbose_name="retention in seconds")),
                ("expires_at", models.FloatField()),
                ("final", models.BooleanField(verbose_name="failed for good")),
                ("response", models.BinaryField(null=True)),
            ],
            options={
                "db_table": "open_idempotency_django_records",
                "default_permissions": ("view", "delete"),
                "indexes": [models.Index(fields=["expires_at"], name="oi_records_by_expiry")],
            },
        ),
        migrations.CreateModel(
            name="Reservation",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("scope_id", DigestField(max_length=512)),
                (
                    "record_id",
                    DigestField(max_length=512),
                ),
                ("ends", models.FloatField()),
            ],
            options={
                "db_table": "open_idempotency_django_reservations",
                "default_permissions": (),
                "indexes": [
                    models.Index(fields=["scope_id", "ends"], name="oi_reservations_of_scope"),
                    models.Index(fields=["ends"], name="oi_reservations_by_end"),
                ],
                "constraints": [models.UniqueConstraint(fields=("scope_id", "record_id"), name="oi_reservations_once")],
            },
        ),
        migrations.CreateModel(
            name="Scope",
            fields=[
                (
                    "scope_id",
                    DigestField(max_length=512, primary_key=True, serialize=False),
                ),
                ("ends", models.FloatField()),
            ],
            options={
                "db_table": "open_idempotency_django_scopes",
                "default_permissions": (),
                "indexes": [models.Index(fields=["ends"], name="oi_scopes_by_end")],
            },
        ),
        migrations.CreateModel(
            name="Stage",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                (
                    "record_id",
                    DigestField(max_length=512),
                ),
                ("stage_id", DigestField(max_length=32)),
                ("name", models.BinaryField()),
                ("stage_key", models.BinaryField()),
                ("frame", models.BinaryField()),
            ],
            options={
                "db_table": "open_idempotency_django_stages",
                "default_permissions": (),
                "constraints": [models.UniqueConstraint(fields=("record_id", "stage_id"), name="oi_stages_once")],
            },
        ),
    ]
