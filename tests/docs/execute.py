"""Runs the Python blocks of one page, in order, as one module: ``python -m tests.docs.execute README.md``.

It runs in a separate process, since a page may set Django up, and may write files to the current directory. A block
that begins with ``# settings.py`` sets Django up with its names. A ``text`` block right after a Python block is the
output of that block.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from tests.docs.pages import Block, blocks

MODULE = "page"


def run(page: Path, after: Callable[[types.ModuleType], object] = lambda module: None) -> int:
    """Run the page's blocks; their number. ``after``: called with the page's module after each block."""
    module = types.ModuleType(MODULE)
    module.__file__ = str(page)
    sys.modules[MODULE] = module
    ran = 0
    for block, following in pairwise([*blocks(page), None]):
        if block is not None and block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                _run_block(page, block, module)
            _compare(block, following, printed.getvalue())
            after(module)
            ran += 1
    return ran


def _compare(block: Block, following: Block | None, printed: str) -> None:
    if following is not None and following.language == "text" and following.heading == block.heading:
        assert printed == following.text, f"line {block.line} prints {printed!r}"


def _run_block(page: Path, block: Block, module: types.ModuleType) -> None:
    # Padded, so that a traceback names the line of the page.
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    if block.text.startswith("# settings.py"):
        settings: dict[str, object] = {}
        exec(code, settings)
        _set_django_up({name: value for name, value in settings.items() if name.isupper()})
    else:
        exec(code, module.__dict__)


def _set_django_up(given: dict[str, object]) -> None:
    import django
    from django.conf import settings

    settings.configure(
        **{"ROOT_URLCONF": MODULE, "ALLOWED_HOSTS": ["testserver"], "SECRET_KEY": "only for tests", **given}
    )
    django.setup()


if __name__ == "__main__":
    sys.stdout.write(f"{run(Path(sys.argv[1]))} blocks\n")
