"""Idempotency keys for Flask: the extension ``Idempotency``, and the decorators ``idempotent`` and ``exempt``.

``Idempotency(app, backend="sqlite:///idempotency.db", lease=30)``, or ``init_app`` with ``app.config``. The claim is
made after all ``before_request`` functions, so authentication in them comes first.
"""

from __future__ import annotations

from open_idempotency.exceptions import MissingExtra
from open_idempotency.rules import exempt

try:
    from open_idempotency._flask.extension import Idempotency, idempotent
except ModuleNotFoundError as error:
    if error.name not in ("flask", "werkzeug"):
        raise
    raise MissingExtra(
        "open_idempotency.flask needs the flask package: pip install 'open-idempotency[flask]'"
    ) from error

__all__ = ["Idempotency", "exempt", "idempotent"]
