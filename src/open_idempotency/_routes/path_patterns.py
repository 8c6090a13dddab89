"""Patterns of paths: which patterns fit a request's path, and in which ways an odd path may be read.

``[METHOD ]/segments``, where ``{name}`` is any one segment and a last ``*`` is any number of further segments. If
several patterns fit a path, the one that says more in the first segment in which they differ is the more specific one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import unquote

T = TypeVar("T")
Segments = list[str]

_METHOD = re.compile(r"[A-Za-z]+")
_PARAMETER = re.compile(r"\{\w+\}")


class Pattern(NamedTuple):
    """``method``: None for any. ``segments``: None stands for any segment. ``open``: whether more may follow."""

    method: str | None
    segments: tuple[str | None, ...]
    open: bool

    def folded(self) -> Pattern:
        """The same pattern for paths in which case does not count."""
        return self._replace(segments=tuple(each and each.casefold() for each in self.segments))


def parse(text: str) -> Pattern:
    """Read a pattern. Raises ``ValueError``, which says what is wrong with it."""
    method, space, path = text.partition(" ")
    if not space or method.startswith("/"):
        method, path = "", text
    if method and not _METHOD.fullmatch(method):
        raise ValueError(f"{method!r} is no HTTP method; write '/path' or 'POST /path'")
    if not path.startswith("/"):
        raise ValueError("the path has to begin with a slash")
    parts = path[1:].removesuffix("/").split("/") if path != "/" else []
    is_open = parts[-1:] == ["*"]
    segments = tuple(map(_segment, parts[:-1] if is_open else parts))
    return Pattern(method.upper() or None, segments, is_open)


def _segment(part: str) -> str | None:
    if _PARAMETER.fullmatch(part):
        return None
    if part in ("", ".", ".."):
        raise ValueError("no path has an empty or dotted segment as applications see it")
    if any(sign in part for sign in "{}<>*"):
        raise ValueError(f"{part!r}: a segment is text or '{{name}}', and '*' stands alone at the end")
    if any(sign in part for sign in "%?#\\"):
        raise ValueError(f"{part!r}: write the path decoded, without a query")
    return part


def meet(one: Pattern, other: Pattern) -> Pattern | None:
    """The pattern of the paths that fit both; None if there is none."""
    if one.method and other.method and one.method != other.method:
        return None
    shorter, longer = sorted((one, other), key=lambda each: len(each.segments))
    common = len(shorter.segments)
    if common < len(longer.segments) and not shorter.open:
        return None
    pairs = list(zip(shorter.segments, longer.segments, strict=False))
    if any(a and b and a != b for a, b in pairs):
        return None
    segments = (*(a or b for a, b in pairs), *longer.segments[common:])
    return Pattern(one.method or other.method, segments, longer.open and (shorter.open or common < len(segments)))


def make_sieve(patterns: Iterable[Pattern]) -> Callable[[str], object]:
    """A quick test whether a path that is not odd fits any of these patterns, ignoring case."""
    fitting = "|".join(sorted({_expression(pattern) for pattern in patterns}))
    return re.compile(f"(?:{fitting})/?\\Z", re.IGNORECASE | re.DOTALL).match


def is_odd(path: str, raw: bytes | None) -> bool:
    """Whether this path may be read as other segments, apart from case. In doubt it is true."""
    return (
        "//" in path
        or "/." in path
        or not path.isascii()
        or (raw is not None and b"%" in raw)
        or "%" in path
        or "\\" in path
        or path[:1] != "/"
    )


def _expression(pattern: Pattern) -> str:
    segments = ("/[^/]+" if each is None else "/" + re.escape(each) for each in pattern.segments)
    return "".join(segments) + "(?:/.*)?" * pattern.open


class Table(Generic[T]):
    """Distinct patterns, each with an entry."""

    def __init__(self, entries: Iterable[tuple[Pattern, T]]) -> None:
        self._root: _Node[T] = _Node()
        for pattern, value in entries:
            node = self._root
            for segment in pattern.segments:
                node = node.below(segment)
            by_method = node.beneath if pattern.open else node.here
            by_method[pattern.method] = value

    def find(self, method: str, segments: Segments) -> tuple[T, ...]:
        """The entries of the patterns that fit, the most specific last."""
        found: list[T] = []
        self._root.find(method, segments, 0, found)
        return tuple(found)


class _Node(Generic[T]):
    """A node shared by patterns. ``here``: entries of patterns that end here; ``beneath``: of those with ``*`` next."""

    __slots__ = ("_any", "_named", "beneath", "here")

    def __init__(self) -> None:
        self.here: dict[str | None, T] = {}
        self.beneath: dict[str | None, T] = {}
        self._named: dict[str, _Node[T]] = {}
        self._any: _Node[T] | None = None

    def below(self, segment: str | None) -> _Node[T]:
        if segment is not None:
            return self._named.setdefault(segment, _Node())
        self._any = self._any or _Node()
        return self._any

    def find(self, method: str, segments: Segments, at: int, found: list[T]) -> None:
        # It goes as deep as the deepest pattern, and visits each node once.
        if self.beneath:
            found += _of_method(self.beneath, method)
        if at == len(segments):
            found += _of_method(self.here, method)
            return
        segment = segments[at]
        if self._any is not None and segment:
            self._any.find(method, segments, at + 1, found)
        named = self._named.get(segment)
        if named is not None:
            named.find(method, segments, at + 1, found)


def _of_method(by_method: dict[str | None, T], method: str) -> list[T]:
    return [by_method[each] for each in (None, method) if each in by_method]


def below(path: str, root: str) -> str:
    """The path as the application below ``root`` routes it. Some servers and frameworks leave the root in the path."""
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def as_it_stands(path: str) -> Segments:
    """The segments of a path. One slash at the end does not count."""
    path = path[path[:1] == "/" : -1 if path[-1:] == "/" else None]
    return path.split("/") if path else []


def tidied(path: str, root: str) -> Segments:
    """The segments after decoding again, joining slashes, resolving dots and ignoring case."""
    return _beneath(_tidied(path), _tidied(root))


def _tidied(path: str) -> Segments:
    segments: list[str] = []
    for segment in unquote(path).replace("\\", "/").casefold().split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    return segments


def as_sent(raw: bytes, root: str) -> Segments:
    """The segments of a path as sent, in which an encoded slash is part of a segment."""
    path = raw.partition(b"?")[0].decode("latin-1")
    return _beneath([unquote(part) for part in as_it_stands(path)], as_it_stands(root))


def _beneath(segments: Segments, roots: Segments) -> Segments:
    return segments[len(roots) :] if segments[: len(roots)] == roots else segments
