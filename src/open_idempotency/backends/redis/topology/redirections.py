"""What both colours of the Cluster's client share: where commands go, and what sends them elsewhere. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import AskError, MovedError, TryAgainError

from open_idempotency.backends.redis.topology import Command

#: how often one command is followed: a slot that is being moved needs two
REDIRECTIONS = 4
#: how many nodes are asked for a connection for channels
LISTENED_AT_MOST = 3

_KEY = 3
_REDIRECTIONS = (MovedError, AskError, TryAgainError)


def redirected(reply: Any) -> bool:
    """Whether a reply says that the command is to be run elsewhere, or in a moment."""
    return isinstance(reply, _REDIRECTIONS)


def key_of(command: Command) -> bytes:
    """The first key of ``EVALSHA sha count key …``."""
    key: bytes = command[_KEY]
    return key


def by_node(commands: Sequence[Command], node_of: Callable[[Command], Any]) -> list[tuple[Any, list[int]]]:
    """The positions of the commands that go to each node."""
    found: dict[str, tuple[Any, list[int]]] = {}
    for position, command in enumerate(commands):
        node = node_of(command)
        found.setdefault(node.name, (node, []))[1].append(position)
    return list(found.values())


def by_slot(keys: Sequence[bytes], slot_of: Callable[[bytes], int]) -> list[list[int]]:
    """The positions of the keys of each slot: a script may take keys of one slot only, on one server too."""
    found: dict[int, list[int]] = {}
    for position, key in enumerate(keys):
        found.setdefault(slot_of(key), []).append(position)
    return list(found.values())
