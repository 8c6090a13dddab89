"""The matrix of rolling deploys: each test on each store, before and after the migration, in both directions.

``OI_TEST_FORMATS=full`` runs each in every combination of them (``tests.matrix``).
"""

from __future__ import annotations

import pytest

from tests.matrix import thin_out


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only the full form runs."""
    thin_out(config, items, "formats", "FORMATS", _cell)


def _cell(item: pytest.Item) -> tuple[str, str, str] | None:
    if not isinstance(item, pytest.Function) or "deploy" not in item.fixturenames:
        return None
    params = item.callspec.params
    if "withdrawn" in item.originalname and (params["store"], params["deploy"]) == ("postgres", "before"):
        return None  # it is skipped with a reason, and replaces no other cell
    moment = f"{params['deploy']}, {params.get('first')} first"
    return params["store"], moment, f"{item.originalname} {params['old_tree']} {params.get('app')}"
