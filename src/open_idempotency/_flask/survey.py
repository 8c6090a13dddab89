"""What the views of a Flask application show of their rules, before the first of them is called."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask

from open_idempotency._routes.effects import Effects
from open_idempotency.rules import Rule, own_rules_on, rules_on

#: Flask responds to them itself, whatever the view is
_ADDED = frozenset({"HEAD", "OPTIONS"})


def look_over(app: Flask, covers: Callable[[str, str, tuple[Rule, ...]], bool]) -> tuple[Effects, bool]:
    """The effects of all views' rules, and whether anything is covered.

    ``covers``: called with a path as its URL rule is written, a method and the rules of the view.
    """
    effects, any_covered = Effects(), False
    for rule in app.url_map.iter_rules():
        view = app.view_functions.get(rule.endpoint)
        listed: set[str] = set(rule.methods or ())
        for method in sorted(listed - _ADDED) or sorted(listed):
            found = rules_on(view, method)
            covered = covers(rule.rule, method, found)
            any_covered = any_covered or covered
            effects.note(method, rule.rule, view, found, own_rules_on(view, method), covered)
    return effects, any_covered
