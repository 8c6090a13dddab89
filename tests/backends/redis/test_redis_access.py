"""Access to a server: the documented ACL user with exactly its rights, and TLS."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from open_idempotency.backend import Busy, Complete, Fail, Finished, Health, Release, Renew, Renewal, SaveStage, Wait
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of, stage_of
from open_idempotency.exceptions import BackendUnavailable, RecordUnreadable
from tests.backends.redis.on_redis import run, server
from tests.conftest import SERVER_KINDS
from tests.servers import Server
from tests.topologies import SERVICE, Cluster, Sentinel, TlsFront, until

RECORD = b"\x01\xff record"
PAGE = Path(__file__).parents[3] / "docs" / "backends.md"
CHANNEL_RIGHTS = ("&oi:*", "+publish", "+subscribe", "+unsubscribe")


@pytest.fixture(params=["sync", "asyncio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


def _documented(name: str) -> list[str]:
    """The words of an ACL rule on the docs page: what follows ``user <name>``."""
    found = re.search(rf"^user {name} (.+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1].split()


async def _life(verbs: AsyncVerbs) -> None:
    """Call all verbs except those for operators."""
    lease = await lease_of(verbs, RECORD)
    assert isinstance(await verbs.claim(claim_of(RECORD)), Busy)
    await verbs.save_stage(SaveStage(lease, stage_of("charge")))
    assert list(await verbs.renew(Renew([lease]))) == [Renewal.OWNED]
    await verbs.fail(Fail(lease))
    lease = await lease_of(verbs, RECORD)
    await verbs.release(Release(lease))
    lease = await lease_of(verbs, RECORD)
    await verbs.wait(Wait(RECORD, 0.01, 0.01))
    await verbs.complete(Complete(lease, b"response"))
    assert await verbs.claim(claim_of(RECORD)) == Finished(b"response")


async def _operate(verbs: AsyncVerbs) -> None:
    assert [record.record_id async for record in verbs.scan()] == [RECORD]
    assert await verbs.purge() == 0
    assert await verbs.delete(RECORD)
    assert isinstance(await verbs.health(), Health)


def _let_in(server: Server, rules: list[str]) -> str:
    """Create the user ``app``; its URL."""
    with server.connect() as plain:
        plain.execute_command("ACL", "SETUSER", "app", "reset", *rules)
        plain.execute_command("ACL", "LOG", "RESET")
    return server.url.replace("//", "//app:secret@")


def _refused(server: Server) -> list[str]:
    with server.connect() as plain:
        return [f"{entry['reason']} {entry['object']}" for entry in plain.acl_log()]


@pytest.fixture(params=SERVER_KINDS, scope="module")
def guarded(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server on which tests create users."""
    with server(kind=request.param) as guarded:
        yield guarded


def test_the_documented_rights_are_enough(mode: str, guarded: Server) -> None:
    """B-11a: without CONFIG; the server logged no refusal."""
    url = _let_in(guarded, _documented("app"))

    async def steps(verbs: AsyncVerbs) -> None:
        await _life(verbs)
        await _operate(verbs)

    run(mode, RedisBackend(url, timeout=10), steps)
    assert _refused(guarded) == []


def test_without_the_rights_to_channels_only_waiting_is_slower(mode: str, guarded: Server) -> None:
    """B-11a, O-04: a completion is recorded even if publishing is forbidden."""
    rules = [word for word in _documented("app") if word not in CHANNEL_RIGHTS]
    url = _let_in(guarded, [*rules, "resetchannels"])

    async def steps(verbs: AsyncVerbs) -> None:
        await _life(verbs)
        await _operate(verbs)

    run(mode, RedisBackend(url, timeout=10), steps)
    assert {entry.split()[0] for entry in _refused(guarded)} <= {"command", "channel"}


def test_without_any_one_right_something_is_refused(guarded: Server) -> None:
    """B-11a: every word of the documented rule is necessary, except those for quotas, replicas and databases."""
    rules = _documented("app")
    elsewhere = {"+wait", "+select", "+zscore", "+zcount", "+zrangebyscore", "+zadd", "+zrem", "+pttl"}
    for word in rules:
        if not word.startswith("+") or word in elsewhere:
            continue
        url = _let_in(guarded, [other for other in rules if other != word])

        async def steps(verbs: AsyncVerbs) -> None:
            await _life(verbs)
            await verbs.wait(Wait(RECORD, 0.2, 0.2))
            await _operate(verbs)

        with guarded.connect() as plain:
            plain.script_flush()
        try:
            run("sync", RedisBackend(url, timeout=10), steps)
        except (BackendUnavailable, RecordUnreadable):
            pass
        finally:
            with guarded.connect() as plain:
                plain.flushdb()
        assert _refused(guarded), f"{word} is not needed"


def test_a_cluster_needs_a_few_rights_more(mode: str, cluster: Cluster) -> None:
    """B-11a: to discover nodes and slots."""
    for node in cluster.nodes:
        with node.connect() as plain:
            plain.flushdb()  # other tests of this process leave records there
        _let_in(node, [*_documented("app"), *_documented("cluster")])

    async def steps(verbs: AsyncVerbs) -> None:
        await _life(verbs)
        await _operate(verbs)

    run(mode, RedisBackend(cluster.url.replace("//", "//app:secret@"), timeout=10), steps)
    for node in cluster.nodes:
        assert _refused(node) == []


# TLS


class Certificates:
    """An authority, a server's certificate and a client's, as files."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.server = self.authority.issue_cert("127.0.0.1", "localhost")
        self.ca, self.other_ca, self.client = (str(folder / name) for name in ("ca.pem", "other.pem", "client.pem"))
        self.authority.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(self.other_ca)
        self.authority.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(self.client)

    def context(self, *, names: tuple[str, ...] = (), clients: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        (self.authority.issue_cert(*names) if names else self.server).configure_cert(context)
        if clients:
            self.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def plain_server() -> Iterator[Server]:
    with server() as plain_server:
        yield plain_server


def test_tls_with_an_authority_of_ones_own(mode: str, plain_server: Server, certificates: Certificates) -> None:
    """The connection is encrypted and the server's certificate verified; also for the connection that listens."""
    with TlsFront(plain_server, certificates.context()) as front:
        url = f"rediss://127.0.0.1:{front.port}/1?ssl_ca_certs={certificates.ca}"
        run(mode, RedisBackend(url, timeout=10), _life)


@pytest.mark.parametrize(
    ("trusted", "names", "message"),
    [("other_ca", (), "certificate verify failed"), ("ca", ("elsewhere.example",), "certificate verify failed")],
    ids=["another authority", "another name"],
)
def test_a_server_that_is_not_the_right_one_is_refused(
    mode: str, trusted: str, names: tuple[str, ...], message: str, plain_server: Server, certificates: Certificates
) -> None:
    """B-10: with the reason, before anything is sent; the host name is verified too."""
    with TlsFront(plain_server, certificates.context(names=names)) as front:
        url = f"rediss://127.0.0.1:{front.port}?ssl_ca_certs={getattr(certificates, trusted)}"

        async def steps(verbs: AsyncVerbs) -> None:
            with pytest.raises(BackendUnavailable, match=message):
                await verbs.claim(claim_of(RECORD))

        run(mode, RedisBackend(url, timeout=10), steps)


@pytest.mark.parametrize("option", ["ssl_check_hostname=no", "ssl_cert_reqs=none"])
def test_less_can_be_asked_of_the_server(
    mode: str, option: str, plain_server: Server, certificates: Certificates
) -> None:
    """Only if a setting says so."""
    with TlsFront(plain_server, certificates.context(names=("elsewhere.example",))) as front:
        url = f"rediss://127.0.0.1:{front.port}?ssl_ca_certs={certificates.ca}&{option}"
        run(mode, RedisBackend(url, timeout=10), _life)


@pytest.mark.parametrize("shown", [True, False], ids=["shown", "missing"])
def test_a_server_may_ask_for_a_certificate(
    mode: str, shown: bool, plain_server: Server, certificates: Certificates
) -> None:
    """A client without one is refused."""
    with TlsFront(plain_server, certificates.context(clients=True)) as front:
        url = f"rediss://127.0.0.1:{front.port}?ssl_ca_certs={certificates.ca}"
        ours = f"&ssl_certfile={certificates.client}&ssl_keyfile={certificates.client}"

        async def refused(verbs: AsyncVerbs) -> None:
            with pytest.raises(BackendUnavailable):
                await verbs.claim(claim_of(RECORD))

        run(mode, RedisBackend(url + ours * shown, timeout=10), _life if shown else refused)


def test_a_server_without_tls_is_unavailable_in_time(mode: str, plain_server: Server) -> None:
    """B-10: neither side waits for the other."""

    async def steps(verbs: AsyncVerbs) -> None:
        with pytest.raises(BackendUnavailable):
            await verbs.claim(claim_of(RECORD))

    run(mode, RedisBackend(plain_server.url.replace("redis://", "rediss://"), timeout=1), steps)


def test_sentinels_are_asked_over_tls_as_well(mode: str, plain_server: Server, certificates: Certificates) -> None:
    """And so is the primary that they name; this one has no TLS and is refused."""
    sentinel = Sentinel(plain_server.port)
    try:
        sentinel.start()
        until(lambda: sentinel.primary() == plain_server.port, "the Sentinel is up")
        with TlsFront(sentinel, certificates.context()) as front:
            url = f"rediss+sentinel://127.0.0.1:{front.port}/{SERVICE}?ssl_ca_certs={certificates.ca}"

            async def steps(verbs: AsyncVerbs) -> None:
                with pytest.raises(BackendUnavailable, match=f"{plain_server.port}|connecting to server"):
                    await verbs.claim(claim_of(RECORD))

            run(mode, RedisBackend(url, timeout=1), steps)
    finally:
        sentinel.stop()
