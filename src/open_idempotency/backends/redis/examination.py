"""The examination of Redis and Valkey servers: what ``INFO`` says of each primary, and of their arrangement (P-17)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from open_idempotency.backend import Finding, Level
from open_idempotency.backends._shared import findings
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.topology import Server, evictions
from open_idempotency.exceptions import BackendUnavailable

On = Callable[..., Any]

_FULL, _FULLER = 0.8, 0.95
_AOF = "set appendonly yes; with appendfsync everysec a crash loses a second, with always nothing"


def examine(options: Options, servers: Sequence[Server], on: On) -> list[Finding]:
    """Look at each primary. ``on``: runs a plain command on one of them, and raises ``BackendUnavailable``."""
    found: list[Finding] = []
    for server in servers:
        try:
            info: Mapping[str, Any] = on(server, "INFO")
        except BackendUnavailable as error:
            if _is_lost(error):
                raise
            found.append(findings.denied("server", f"INFO is not permitted: {error.__cause__}", "allow INFO to look"))
            continue
        found += _of_server(info, options)
    found += _of_arrangement(options, servers, on)
    return list(dict.fromkeys(found))


def _is_lost(error: BackendUnavailable) -> bool:
    """Whether the server did not reply, as opposed to a refusal."""
    return type(error.__cause__).__name__ not in ("NoPermissionError", "ResponseError")


def _of_server(info: Mapping[str, Any], options: Options) -> Iterator[Finding]:
    name, version = ("Valkey", info["valkey_version"]) if info.get("valkey_version") else (
        "Redis", info.get("redis_version", "of unknown version"),
    )  # fmt: skip
    yield findings.server(f"{name} {version}, port {info.get('tcp_port', '?')}")
    if info.get("role", "master") != "master":
        yield findings.replica("the server is a replica, which takes no writes")
    yield _eviction(info)
    yield _memory(info)
    yield from _persistence(info)
    yield from _replicas(info, options)


def _eviction(info: Mapping[str, Any]) -> Finding:
    dangers = evictions(info)
    if dangers:
        return Finding("eviction", Level.PROBLEM, dangers[0], "CONFIG SET maxmemory-policy noeviction, and in its file")
    policy = info.get("maxmemory_policy", "unknown")
    without = "" if int(info.get("maxmemory", 0)) else ", and no maxmemory is set, so nothing is evicted"
    return Finding("eviction", Level.OK, f"maxmemory-policy is {policy}{without}")


def _memory(info: Mapping[str, Any]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        total = int(info.get("total_system_memory", 0))
        share = f" of {findings.megabytes(total)} that the machine has" if total else ""
        return Finding("memory", Level.OK, f"{findings.megabytes(used)} are used{share}; no maxmemory is set")
    found = f"{findings.megabytes(used)} of {findings.megabytes(limit)} are used ({used / limit:.0%})"
    cure = "at the limit new keys are refused (503): raise maxmemory, or lower ttl= and max_response_bytes="
    if used < _FULL * limit:
        return Finding("memory", Level.OK, found)
    return Finding("memory", Level.PROBLEM if used > _FULLER * limit else Level.WARNING, found, cure)


def _persistence(info: Mapping[str, Any]) -> Iterator[Finding]:
    if int(info.get("loading", 0)):
        yield Finding("persistence", Level.PROBLEM, "the server is loading its data, and refuses calls meanwhile")
    if not int(info.get("aof_enabled", 1)):
        lost = "appendonly is off, so a crash of the server loses what was written since its last snapshot"
        yield Finding("persistence", Level.WARNING, f"{lost}, and lost keys run again", _AOF)
    else:
        yield Finding("persistence", Level.OK, "appendonly is on")
    for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(name, "ok") != "ok":
            yield Finding("persistence", Level.PROBLEM, f"{name} is {info[name]}", "look at the server's log and disk")


def _replicas(info: Mapping[str, Any], options: Options) -> Iterator[Finding]:
    connected = int(info.get("connected_slaves", 0))
    if connected < options.min_replicas:
        found = f"{connected} replicas are connected, and min_replicas={options.min_replicas}"
        yield Finding("replicas", Level.PROBLEM, found, "new keys are refused until the replicas are back")
    elif connected and not options.min_replicas:
        found = f"{connected} replicas are connected, and min_replicas is not set"
        cure = "a failover may forget the last keys; min_replicas=1 in the URL waits for a replica"
        yield Finding("replicas", Level.WARNING, found, cure)
    else:
        yield Finding("replicas", Level.OK, f"{connected} replicas are connected")


def _of_arrangement(options: Options, servers: Sequence[Server], on: On) -> Iterator[Finding]:
    if options.topology == "sentinel":
        yield Finding("sentinel", Level.OK, f"the Sentinels name a primary: {options.where}")
    if options.topology != "cluster":
        return
    for server in servers:
        try:
            state = _lines(on(server, "CLUSTER INFO"))
        except BackendUnavailable as error:
            if _is_lost(error):
                raise
            yield findings.denied("cluster", f"CLUSTER INFO is not permitted: {error.__cause__}")
            return
        if state.get("cluster_state") != "ok":
            failed = state.get("cluster_slots_fail", "?")
            found = f"cluster_state is {state.get('cluster_state')}; {failed} slots have failed"
            yield Finding("cluster", Level.PROBLEM, found, "keys of these slots get 503 until their primary is back")
            return
    yield Finding("cluster", Level.OK, f"cluster_state is ok, with {len(servers)} primaries")


def _lines(reply: Any) -> dict[str, str]:
    if isinstance(reply, Mapping):
        return {str(name): str(value) for name, value in reply.items()}
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    return dict(line.split(":", 1) for line in text.split() if ":" in line)
