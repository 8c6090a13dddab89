"""The parts of the docs that are drawn from the code: tables of options, problems, events, errors, states and tests.

They stand in the pages between two comments, so that they can be read without a build. ``python docs/_ext/drawn.py``
writes them anew; the build and a test fail where a page is behind the code. Nothing here is written by hand twice.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accident
import house
import how_tos
import lines
import policy_examples
import states

from open_idempotency import events, exceptions
from open_idempotency._core import problems, rendering
from open_idempotency._core.models import Busy, Refusal
from open_idempotency.policy import FIELD_NAMES, IdempotencyPolicy

DOCS = Path(__file__).resolve().parent.parent
_PART = re.compile(r"(<!-- drawn: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What the problems' makers take; the values are only there to have one of each made.
_SAMPLES: dict[str, object] = {
    "detail": "",
    "limit": 10,
    "busy": Busy(1.0, 30.0),
    "reason": Refusal.FAILED,
    "status": 201,
    "location": None,
    "retry_after": 1,
    "remaining": 60.0,
    "retryable": True,
    "challenge": "Bearer",
    "unnamed": False,
}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table. A bar in a cell would end it, so it is escaped."""
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def plain(docstring: str | None) -> str:
    """The first paragraph of a docstring as one line of Markdown."""
    paragraph = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("``", "`")


def policy_fields() -> str:
    """A heading for every policy field, with its default, what the policy's docstring says of it, and an example."""
    fields = {field.name: field for field in dataclasses.fields(IdempotencyPolicy)}
    parts: list[str] = []
    for group, texts in _field_texts().items():
        parts.append(f"## {group}\n")
        parts += [_field(fields[name], text) for name, text in texts.items()]
    return "\n".join(parts)


def _field(field: dataclasses.Field[Any], text: str) -> str:
    example = policy_examples.EXAMPLES.get(field.name)
    shown = f"\n```python\n{example}\n```\n" if example else ""
    return f"### `{field.name}`\n\nDefault: {_default(field)}\n\n{text[:1].upper()}{text[1:]}.\n{shown}"


def _field_texts() -> dict[str, dict[str, str]]:
    """What the policy's docstring says of each field, by its groups."""
    docstring = inspect.cleandoc(IdempotencyPolicy.__doc__ or "")
    groups: dict[str, dict[str, str]] = {}
    for group in docstring.split("\n\n")[1:]:
        heading, _, body = group.partition("\n")
        pieces = re.split(r"``(\w+)``(?=[:,])", " ".join(body.split()))
        texts = groups.setdefault(heading, {})
        waiting: list[str] = []
        for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
            if name not in FIELD_NAMES:
                raise ValueError(f"{heading}: {name} is no policy field")
            waiting.append(name)
            if text.startswith(":"):
                said = text[1:].strip().rstrip(";.").replace("``", "`")
                texts.update((one, said) for one in waiting)
                waiting.clear()
    return groups


def _default(field: dataclasses.Field[Any]) -> str:
    default = field.default
    if isinstance(default, frozenset | tuple) and default:
        return ", ".join(f"`{each}`" for each in (sorted(default) if isinstance(default, frozenset) else default))
    return f"`{default!r}`"


def problem_kinds() -> str:
    """Every problem that the package answers with. One name may have two makers; both are shown."""
    made = [(_made(maker), maker) for maker in _problem_makers()]
    rows = [
        (
            f"`{problem.name}`",
            str(problem.status),
            str(problem.retryable).lower(),
            "yes" if problem.retry_after is not None else "no",
            plain(maker.__doc__),
        )
        for problem, maker in made
    ]
    head = ("Name", "Status", "`retryable`", "`Retry-After`", "When")
    return table(head, rows)


def _problem_page(name: str) -> Callable[[], str]:
    """What the page of one problem shows of it: status and members, and a whole response."""
    return lambda: _facts([problem for problem in map(_made, _problem_makers()) if problem.name == name])


def _facts(kinds: list[problems.Problem]) -> str:
    rows = [(str(p.status), str(p.retryable).lower(), "yes" if p.retry_after is not None else "no") for p in kinds]
    shown = replace(kinds[0], instance="/charges", reference="3f9c1b7a5d2e8046", detail=kinds[0].detail or "…")
    sample = json.loads(rendering.render(shown, IdempotencyPolicy()).body or b"")
    facts = table(("Status", "`retryable`", "`Retry-After`"), list(dict.fromkeys(rows)))
    return f"{facts}\n```json\n{json.dumps(sample, indent=2, ensure_ascii=False)}\n```\n"


def problem_index() -> str:
    """The pages of all problems, by status."""
    titles = {page.stem: how_tos.title_of(page) for page in sorted((DOCS / "problems").glob("*.md"))}
    return "".join(
        f"- [{title}]({name}.md)\n"
        for name, title in sorted(titles.items(), key=lambda each: each[1])
        if name != "index"
    )


def problem_names() -> list[str]:
    """Each name of a problem once, as the code has them."""
    return list(dict.fromkeys(_made(maker).name for maker in _problem_makers()))


def _problem_makers() -> list[Callable[..., problems.Problem]]:
    functions = [value for value in vars(problems).values() if inspect.isfunction(value)]
    return [f for f in functions if f.__module__ == problems.__name__ and f.__annotations__.get("return") == "Problem"]


def _made(maker: Callable[..., problems.Problem]) -> problems.Problem:
    return maker(**{name: _SAMPLES[name] for name in inspect.signature(maker).parameters})


def event_kinds() -> str:
    """Every event and its members."""
    kinds = [kind for kind in vars(events).values() if inspect.isclass(kind) and issubclass(kind, events.Event)]
    rows = [
        (f"`{kind.__name__}`", ", ".join(f"`{f.name}`" for f in dataclasses.fields(kind)), plain(kind.__doc__))
        for kind in kinds
        if kind is not events.Event
    ]
    return table(("Event", "Members", "Meaning"), rows)


def error_kinds() -> str:
    """Every exception with its code and status hint."""
    root = exceptions.IdempotencyError
    kinds = [kind for kind in vars(exceptions).values() if inspect.isclass(kind) and issubclass(kind, root)]
    rows = [(f"`{kind.__name__}`", f"`{kind.code}`", str(kind.status), plain(kind.__doc__)) for kind in kinds]
    return table(("Exception", "`code`", "`status`", "Meaning"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "policy": policy_fields,
    "problems": problem_kinds,
    "events": event_kinds,
    "exceptions": error_kinds,
    "states": states.as_table,
    "lines": lines.as_tables,
    "house": house.figures,
    "how-tos": how_tos.grouped,
    "problem-index": problem_index,
    **{f"problem-{name}": _problem_page(name) for name in problem_names()},
    "walk": house.walk,
}


PICTURES: dict[str, Callable[[], str]] = {
    "pictures/accident.svg": lambda: accident.as_svg(with_key=False),
    "pictures/cure.svg": lambda: accident.as_svg(with_key=True),
    "reference/states.svg": states.as_svg,
}


def redrawn(text: str) -> str:
    """A page's text with its drawn parts made anew."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", text)


def outdated() -> dict[Path, str]:
    """The files that are behind the code, with the text that they should have."""
    wanted = {page: redrawn(page.read_text(encoding="utf-8")) for page in sorted(DOCS.rglob("*.md"))}
    wanted |= {DOCS / name: draw() for name, draw in PICTURES.items()}
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}


def setup(app: Any) -> dict[str, bool]:
    """Sphinx: refuse to build pages that are behind the code."""
    behind = ", ".join(path.name for path in outdated())
    if behind:
        raise RuntimeError(f"behind the code: {behind}; run python docs/_ext/drawn.py")
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main() -> None:
    """Write what is outdated."""
    for path, text in outdated().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"drew {path.relative_to(DOCS)}\n")


if __name__ == "__main__":
    main()
