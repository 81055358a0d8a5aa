"""Who may use a Redis: users with passwords and rights, and certificates on both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import trustme
from testcontainers.core.container import DockerContainer

from killswitch.stores import Store, StoreForbidden, StoreUnavailable
from killswitch.stores.redis.store import RedisStore
from tests.conformance.rigs.base import ContainerServer, wait_until_serving
from tests.conformance.rigs.network import free_port
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.redis import MINIMAL_RIGHTS, RedisContainerRig, image_of_redis, open_impatient_redis

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def rig() -> Iterator[RedisContainerRig]:
    """A server of this file's own, because what is done to it here others would notice."""
    made = RedisContainerRig(image_of_redis())
    yield made
    made.close()


@pytest.fixture
def admin(rig: RedisContainerRig) -> Iterator[redis.Redis]:
    """Somebody else's client of the same server."""
    host, _, port = rig.server.partition(":")
    with redis.Redis(host=host, port=int(port)) as client:
        yield client


def test_a_user_with_the_listed_rights_can_do_everything(
    rig: RedisContainerRig, admin: redis.Redis, at: str, observer: Observer
) -> None:
    """The rights that the documents list are enough, and settings that may not be asked for are left out."""
    admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">se:cr@et", *MINIMAL_RIGHTS)
    with rig.open_with(login="agent:se%3Acr%40et@") as store:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        lease = store.hold(f"{at}held", b"v", 60_000)
        lease.keep_alive()
        version = store.commit({f"{at}k": None}, {f"{at}k": b"v"})
        observer.wait_for(f"{at}k", b"v")
        store.commit({f"{at}k": version}, {}, [f"{at}k"])
        lease.release()
        observer.wait_for(f"{at}held", None)
        expiring = store.hold(f"{at}expiring", b"v", 100)
        observer.wait_for(expiring.key, None)
        assert store.scan(at) == []
        assert store.server_settings() == {"wait_replicas": "0", "role": "master", "connected_replicas": "0"}
        assert store.server_version() == ""


@pytest.mark.parametrize("missing", [right for right in MINIMAL_RIGHTS if right[0] in "+~&"])
def test_a_right_that_is_missing_is_forbidden_and_nothing_is_done_by_halves(
    rig: RedisContainerRig, store: Store, admin: redis.Redis, at: str, missing: str
) -> None:
    """Redis checks each command of a script when it comes to it, and undoes nothing; so we check before."""
    rights = [right for right in MINIMAL_RIGHTS if right != missing]
    admin.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">secret", *rights)
    version = store.commit({}, {f"{at}k": b"v", f"{at}gone": b"v"})
    lease = store.hold(f"{at}held", b"v", 60_000)
    before = (store.scan(at), admin.hgetall("killswitch:meta"), admin.dbsize())
    with rig.open_with(login="poor:secret@") as poor:
        if missing in ("+subscribe", "+ping"):
            # Only watches need these.
            assert poor.read(f"{at}k") is not None
        else:
            calls: list[Callable[[], object]] = [
                lambda: poor.commit({f"{at}k": version}, {f"{at}k": b"w"}, [f"{at}gone"]),
                lambda: poor.hold(f"{at}other", b"w", 1_000),
            ]
            for call in calls:
                with pytest.raises(StoreForbidden, match="NOPERM"):
                    call()
    assert (store.scan(at), admin.hgetall("killswitch:meta"), admin.dbsize()) == before
    lease.release()


@pytest.mark.parametrize("login", ["agent:wrong-password@", "nobody:wrong-password@", ""])
def test_a_wrong_password_is_forbidden_and_in_no_message(
    rig: RedisContainerRig, admin: redis.Redis, at: str, login: str
) -> None:
    """Waiting would not help, so it is StoreForbidden; the sentence names the user and never the password."""
    admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">right", *MINIMAL_RIGHTS)
    admin.execute_command("ACL", "SETUSER", "default", "off")
    try:
        with rig.open_with(login=login) as store:
            for call in (lambda: store.read(f"{at}k"), lambda: store.commit({}, {f"{at}k": b"v"})):
                with pytest.raises(StoreForbidden) as caught:
                    call()
                told = f"{caught.value!r} {caught.value.__cause__!r} {store!r} {store.address}"
                assert "wrong-password" not in told
                assert (login.partition(":")[0] or "NOAUTH") in told
    finally:
        # Connections that are open keep their rights.
        admin.execute_command("ACL", "SETUSER", "default", "on")


class TlsRig(ContainerServer):
    """Redis that speaks TLS alone, and asks its clients for a certificate."""

    def __init__(self, image: str, files: Path, authority: trustme.CA) -> None:
        self.port = free_port()
        self.files = files
        authority.cert_pem.write_to_path(files / "ca.pem")
        _write_certificate(authority.issue_cert("127.0.0.1", "redis.example"), files, "server")
        _write_certificate(authority.issue_cert("agent.example"), files, "client")
        super().__init__(
            DockerContainer(image)
            .with_bind_ports(6379, self.port)
            .with_volume_mapping(str(files), "/tls", "ro")
            .with_command(
                "redis-server --port 0 --tls-port 6379 --tls-cert-file /tls/server.pem --tls-key-file /tls/server.key "
                "--tls-ca-cert-file /tls/ca.pem --tls-auth-clients yes --protected-mode no --save '' --dir /tmp"
            )
        )
        try:
            wait_until_serving(self.open, f"redis over TLS at {self.port}")
        except BaseException:
            self.close()
            raise

    def open(self, host: str = "127.0.0.1", request_timeout_ms: int = 2_000, **options: str) -> RedisStore:
        """A client; options of the URL replace the right ones, and '' leaves one out."""
        chosen = {name: str(self.files / file) for name, file in
                  (("ca_file", "ca.pem"), ("cert_file", "client.pem"), ("key_file", "client.key"))}  # fmt: skip
        chosen |= options
        query = "&".join(f"{name}={value}" for name, value in chosen.items() if value)
        return open_impatient_redis(
            f"rediss://{host}:{self.port}?{query}", request_timeout_ms=request_timeout_ms, alive_every_ms=500
        )


def _write_certificate(issued: trustme.LeafCert, files: Path, name: str) -> None:
    with (files / f"{name}.pem").open("wb") as file:
        for part in issued.cert_chain_pems:
            file.write(part.bytes())
    issued.private_key_pem.write_to_path(files / f"{name}.key")
    # The server in the container may be another user than this one.
    (files / f"{name}.key").chmod(0o644)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRig]:
    """A server that speaks TLS."""
    files = tmp_path_factory.mktemp("tls")
    files.chmod(0o755)
    made = TlsRig(image_of_redis(), files, trustme.CA())
    yield made
    made.close()


def test_tls_with_a_client_certificate_carries_everything(tls: TlsRig, at: str, observer: Observer) -> None:
    """Requests and watches, with a large value that does not fit one record."""
    with tls.open() as store:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        large = b"x" * 200_000
        store.commit({f"{at}k": None}, {f"{at}k": large})
        observer.wait_for(f"{at}k", large)
        assert store.address == f"rediss://127.0.0.1:{tls.port}"
    with tls.open("localhost", server_name="redis.example") as store:
        assert store.read(f"{at}k") is not None


def test_a_server_that_cannot_prove_who_it_is_is_refused(tls: TlsRig, at: str, tmp_path: Path) -> None:
    """Another authority, or another name, and nothing is sent."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    wrong: list[RedisStore] = [
        tls.open(ca_file=str(tmp_path / "other.pem")),
        tls.open(server_name="other.example"),
        tls.open(ca_file=""),
        tls.open("localhost"),
    ]
    for store in wrong:
        with store, pytest.raises(StoreUnavailable, match="certificate verify failed"):
            store.commit({}, {f"{at}k": b"v"})
    with tls.open() as store:
        assert store.read(f"{at}k") is None


def test_a_client_without_a_certificate_is_refused(tls: TlsRig, at: str) -> None:
    """With TLS 1.3 the refusal comes after the handshake, and is no unknown outcome all the same."""
    with tls.open(cert_file="", key_file="") as store, pytest.raises(StoreUnavailable, match="did not answer"):
        store.commit({}, {f"{at}k": b"v"})


def test_a_client_in_the_clear_gets_nowhere_with_a_tls_server(tls: TlsRig, at: str) -> None:
    """And is told within its time."""
    with (
        open_impatient_redis(f"redis://127.0.0.1:{tls.port}", request_timeout_ms=2_000) as store,
        pytest.raises(StoreUnavailable, match="did not answer"),
    ):
        store.commit({}, {f"{at}k": b"v"})
