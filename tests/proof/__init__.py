"""The proof of S-05 and S-06: records in Valkey, rows in PostgreSQL; workers die or freeze at every point.

A cell is a point, what stops the worker there, and whether the records are lost as well. ``OI_TEST_PROOF=full`` (``tox
-e proof``) takes a thousand keys for each cell, which the six forms share; a number takes that many keys of each form;
the default, which ``tox -e full`` runs, takes two.
"""

from __future__ import annotations

import os

_ASKED = os.environ.get("OI_TEST_PROOF", "")
#: whether a long form was asked for
FULL = bool(_ASKED)
#: seconds after which a wait of the proof is given up; a processor that many share must not end a long form
PATIENCE = 300.0 if FULL else 60.0
#: of each form in each cell
KEYS = 170 if _ASKED == "full" else int(_ASKED or "2")
