"""Formats that earlier versions have stored, read by this version; and two versions on one store at the same time.

Each folder beside this file is named after a version, and has what it left in stores: files, rows and fields. It is
never regenerated. A version that stores something in a new way adds a line to ``VERSIONS``, and a folder by ``python -m
tests.formats.make NAME``; from then on all of them are tested.
"""

from __future__ import annotations

#: the commit of each version whose formats may be in a user's store
VERSIONS = {"2026-11": "5536621aa98f6915384561e2abbf4cc431b27964"}
