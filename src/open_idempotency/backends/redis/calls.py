"""Carrying out scripts, blocking: in bounded time, sent again where that may help, confirmed by replicas where asked.

Whatever the client library raises leaves here as ``BackendUnavailable``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, RedisError

from open_idempotency._perform.local_failures import is_local, translated
from open_idempotency.backends.redis.bounds import within
from open_idempotency.backends.redis.clients import ERRORS, ProcessClients, may_retry, wrapped
from open_idempotency.backends.redis.connecting import CLOSED
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.replies import confirmed
from open_idempotency.backends.redis.scripts import Arguments, Keyed, Script, evaluation
from open_idempotency.backends.redis.topology import Client, Server

R = TypeVar("R")


class Calls:
    """What the blocking backend asks of its servers. Safe to use from many threads."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._clients = ProcessClients(options)

    def close(self) -> None:
        """Close this process's connections."""
        self._clients.close()

    def script(self, script: Script, keys: Sequence[bytes], arguments: Arguments) -> Any:
        """Run one script on keys of one server."""
        return self._run(lambda client: self._evaluate(client, script, (keys, arguments)))

    def _evaluate(self, client: Client, script: Script, keyed: Keyed) -> Any:
        now = self._options.now()
        try:
            return client.execute(evaluation(script, keyed, now))
        except NoScriptError:
            return client.execute(evaluation(script, keyed, now, source=True))

    def durable(self, script: Script, key: bytes, arguments: Arguments) -> Any:
        """The same for one key; where ``min_replicas`` says so it fails unless as many replicas have what it wrote."""
        if not self._options.min_replicas:
            return self.script(script, (key,), arguments)
        found = self._run(lambda client: self._waited(client, script, ((key,), arguments)))
        return confirmed(found, self._options.min_replicas)

    def _waited(self, client: Client, script: Script, keyed: Keyed) -> list[Any]:
        now, wait = self._options.now(), self._options.wait_command
        found = client.together([evaluation(script, keyed, now), wait])
        if isinstance(found[0], NoScriptError):
            found = client.together([evaluation(script, keyed, now, source=True), wait])
        return raised(found)

    def by_server(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Arguments]) -> list[Any]:
        """Run a script that takes many keys, with arguments and an answer for each; a round trip for each server."""
        return self._run(lambda client: self._grouped(client, script, keys, arguments))

    def _grouped(
        self, client: Client, script: Script, keys: Sequence[bytes], arguments: Sequence[Arguments]
    ) -> list[Any]:
        groups, now = client.groups(keys), self._options.now()
        batches = [keyed_of(group, keys, arguments) for group in groups]
        found = client.each([evaluation(script, keyed, now) for keyed in batches])
        forgotten = [place for place, reply in enumerate(found) if isinstance(reply, NoScriptError)]
        if forgotten:
            again = client.each([evaluation(script, batches[place], now, source=True) for place in forgotten])
            for place, reply in zip(forgotten, again, strict=True):
                found[place] = reply
        return in_order(groups, raised(found))

    def servers(self) -> Sequence[Server]:
        """All primaries, for ``on``."""
        return self._run(lambda client: client.servers())

    def on(self, server: Server, *words: Any) -> Any:
        """Run one plain command on one of them."""
        return self._run(lambda _: server.execute(*words))

    def _run(self, function: Callable[[Client], R]) -> R:
        started, closings = time.monotonic(), self._clients.closings()
        try:
            with within(self._options.budget):
                try:
                    return function(self._clients.get())
                except ERRORS as error:
                    if self._clients.closings() != closings or not may_retry(error, started, self._options):
                        raise
                    return function(self._clients.get())
        except ERRORS as error:
            raise wrapped(error) from error
        except Exception as error:
            if is_local(error):
                raise translated(error)  # noqa: B904 (it has its cause)
            if self._clients.closings() == closings:
                raise
            raise wrapped(RedisError(CLOSED)) from error


def keyed_of(group: Sequence[int], keys: Sequence[bytes], arguments: Sequence[Arguments]) -> Keyed:
    """Some of the keys with their arguments, for one script."""
    return [keys[position] for position in group], tuple(value for position in group for value in arguments[position])


def in_order(groups: Sequence[Sequence[int]], found: Sequence[Sequence[Any]]) -> list[Any]:
    """The answers of the groups in the order of their keys."""
    answers: dict[int, Any] = {}
    for group, reply in zip(groups, found, strict=True):
        answers.update(zip(group, reply, strict=True))
    return [answers[position] for position in sorted(answers)]


def raised(found: list[Any]) -> list[Any]:
    """The replies, where none of them is a refusal."""
    for reply in found:
        if isinstance(reply, Exception):
            raise reply
    return found
