"""etcd over TLS with client certificates, users and passwords: who gets in, and what the others are told."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from structlog.testing import capture_logs

from killswitch.stores import Conflict, Entry, LeaseLost, Store, StoreForbidden, StoreUnavailable, open_store
from killswitch.stores.etcd.store import EtcdStore
from killswitch.stores.urls import Login
from tests.conformance.rigs.etcd_secure import ALLOWED_PREFIX, PASSWORDS, TOKEN_FLAGS, SecureEtcd
from tests.conformance.rigs.network import free_port
from tests.conformance.rigs.observer import Observer
from tests.images.choose import choose_image, do_without_ryuk_where_it_cannot_be_had, require_docker
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

LEASE_TTL_MS = 20_000
LATE_S = 1.0


@pytest.fixture(scope="module", params=sorted(TOKEN_FLAGS))
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureEtcd]:
    """A server for each kind of token, in place of the one server of the shared suite."""
    client = require_docker()
    try:
        do_without_ryuk_where_it_cannot_be_had(client)
        image = choose_image(client, "etcd")
    finally:
        client.close()
    made = SecureEtcd(image, tmp_path_factory.mktemp("papers"), request.param)
    yield made
    made.close()


@pytest.fixture
def etcd(rig: SecureEtcd, nothing_left_behind: None) -> SecureEtcd:
    """The server; a test that ends it brings it back."""
    return rig


@pytest.fixture
def at() -> str:
    """A prefix that no other test uses, and that the user ``agent`` may use."""
    return f"{ALLOWED_PREFIX}{uuid.uuid4().hex}/"


def use_every_call(store: Store, at: str, observer: Observer) -> None:
    """Each method of the port once, with its outcome looked at."""
    store.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    version = store.commit({f"{at}k": None}, {f"{at}k": b"v"})
    assert store.read(f"{at}k") == Entry(f"{at}k", b"v", version)
    assert store.scan(at) == [Entry(f"{at}k", b"v", version)]
    observer.wait_for(f"{at}k", b"v")
    with pytest.raises(Conflict):
        store.commit({f"{at}k": None}, {f"{at}k": b"w"})
    lease = store.hold(f"{at}lease", b"v", LEASE_TTL_MS)
    lease.keep_alive()
    lease.release()
    with pytest.raises(LeaseLost):
        lease.keep_alive()


def test_a_certificate_is_enough_where_its_name_is_a_user(etcd: SecureEtcd, at: str, observer: Observer) -> None:
    """By URL, as an operator writes it: no password anywhere, and rights of the user that the certificate names."""
    files = etcd.papers.files("agent")
    url = f"etcds://{etcd.server}?ca_file={files.ca_file}&cert_file={files.cert_file}&key_file={files.key_file}"
    with open_store(url, request_timeout_ms=5_000) as store:
        assert store.address == f"etcds://{etcd.server}"
        use_every_call(store, at, observer)
        with pytest.raises(StoreForbidden, match="permission denied"):
            store.read("/elsewhere")


def test_a_password_file_is_enough_as_well(etcd: SecureEtcd, at: str, observer: Observer) -> None:
    """The certificate only opens the connection then; the server's settings can be read."""
    files = etcd.papers.files("nobody")
    password_file = etcd.papers.directory / "password"
    password_file.write_text(f"{PASSWORDS['agent']}\n")
    url = (
        f"etcds://{etcd.server}?ca_file={files.ca_file}&cert_file={files.cert_file}&key_file={files.key_file}"
        f"&username=agent&password_file={password_file}"
    )
    with open_store(url, request_timeout_ms=5_000) as store:
        use_every_call(store, at, observer)
        assert isinstance(store, EtcdStore)
        told = store.server_settings()
        assert told["login_required"] == "yes"
        assert told["member_count"] == "1"
        assert told["member"] == told["leader"]


def test_what_a_user_may_not_do_is_forbidden_and_not_done(etcd: SecureEtcd, at: str, observer: Observer) -> None:
    """Reads, commits of which one key is foreign, holds; a watch hears nothing, and says so in the log."""
    with capture_logs() as log, etcd.open(user="agent") as store, etcd.open("root") as root:
        for refused in (
            lambda: store.read("/elsewhere"),
            lambda: store.scan("/"),
            lambda: store.commit({}, {f"{at}k": b"v", "/elsewhere": b"v"}),
            lambda: store.hold("/elsewhere", b"v", LEASE_TTL_MS),
        ):
            with pytest.raises(StoreForbidden, match="grant the user a role for these keys"):
                refused()
        store.watch("/elsewhere", observer.on_change, observer.on_gap)
        root.commit({}, {"/elsewhere/k": b"v"})
        wait_until(lambda: [line for line in log if line["event"] == "watch interrupted"], what="a word in the log")
        assert observer.said == []
        assert root.read(f"{at}k") is None
        assert root.read("/elsewhere") is None


def test_a_wrong_password_is_forbidden_and_never_shown(etcd: SecureEtcd, at: str) -> None:
    """Also for a user that there is not; the sentence says what is wrong."""
    for user, password in (("agent", "not-the-password"), ("absent", "not-the-password")):
        with etcd.open(user=user, password=password) as store:
            for call in (lambda s=store: s.read(at), lambda s=store: s.commit({}, {f"{at}k": b"v"})):
                with pytest.raises(StoreForbidden, match="the user name or the password is wrong") as refused:
                    call()
                assert "not-the-password" not in str(refused.value)


def test_nobody_is_told_to_log_in(etcd: SecureEtcd, at: str) -> None:
    """A certificate of a name that is no user opens the connection and nothing else."""
    with etcd.open("nobody") as store:
        for call in (lambda: store.read(f"{at}k"), lambda: store.commit({}, {f"{at}k": b"v"})):
            with pytest.raises(StoreForbidden, match="user"):
                call()


REFUSED = {
    "wrong authority": ("agent", "other-ca.pem", None, "its certificate is not from an authority in ca_file"),
    "no certificate of ours": (None, "ca.pem", None, "it refuses our certificate, or wants one|may refuse our"),
    "certificate of a stranger": (
        "stranger",
        "ca.pem",
        None,
        "it refuses our certificate, or wants one|may refuse our",
    ),
    "another name": ("agent", "ca.pem", "wrong.example", "does not bear the name .* server_name"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_a_handshake_that_fails_says_why_in_time(etcd: SecureEtcd, at: str, wrong: str) -> None:
    """Unavailable, for writes as well, and not to be mistaken for a server that is down."""
    who, ca, server_name, said = REFUSED[wrong]
    files = etcd.papers.files(who, ca=ca, server_name=server_name)
    with etcd.open(tls=files, request_timeout_ms=2_000) as store:
        for call in (lambda: store.read(f"{at}k"), lambda: store.commit({}, {f"{at}k": b"v"})):
            started_s = time.monotonic()
            with pytest.raises(StoreUnavailable, match=said):
                call()
            assert time.monotonic() - started_s < 2.0 + LATE_S
    with etcd.open("agent") as store:
        assert store.read(f"{at}k") is None


def test_the_right_name_is_accepted_at_another_address(etcd: SecureEtcd, at: str) -> None:
    """``server_name`` is what the certificate must bear, whatever was connected to."""
    with etcd.open(tls=etcd.papers.files("agent", server_name="etcd.example")) as store:
        store.commit({}, {f"{at}k": b"v"})
    by_name = f"localhost:{etcd.server.rpartition(':')[2]}"
    with etcd.open("agent", server=by_name) as store, pytest.raises(StoreUnavailable, match="does not bear the name"):
        store.read(f"{at}k")


def test_a_server_that_is_down_or_speaks_no_tls_is_told_apart(etcd: SecureEtcd, at: str) -> None:
    """Nobody listening is one sentence, TLS on one side only another."""
    down = f"127.0.0.1:{free_port()}"
    with etcd.open("agent", server=down) as store, pytest.raises(StoreUnavailable, match="nobody listens there"):
        store.read(at)
    with EtcdStore([etcd.server]) as store, pytest.raises(StoreUnavailable, match=r"it may want TLS \(etcds://"):
        store.read(at)


def test_a_token_that_ran_out_is_renewed_without_a_word(etcd: SecureEtcd, at: str) -> None:
    """Reads, writes and keep-alives go on, from many threads at once, after the server has forgotten the token."""
    with etcd.open(user="agent") as store:
        lease = store.hold(f"{at}lease", b"v", LEASE_TTL_MS)
        for number in range(2):
            # Given out after the store's, so the store's has run out when this has.
            etcd.wait_for_the_end_of_a_token()
            with ThreadPoolExecutor(8) as pool:
                versions = list(
                    pool.map(lambda racer, n=number: store.commit({}, {f"{at}{n}/{racer}": b"v"}), range(8))
                )
            assert len(set(versions)) == 8
            lease.keep_alive()
        assert len(store.scan(at)) == 17


def test_a_change_of_roles_disturbs_nobody(etcd: SecureEtcd, at: str) -> None:
    """A signed token is refused as old after it, so the first call after it is made with a new one, once."""
    with etcd.open(user="agent") as store:
        store.commit({}, {f"{at}k": b"before"})
        etcd.add_role(f"role-{uuid.uuid4().hex}")
        version = store.commit({}, {f"{at}k": b"after"})
        etcd.add_role(f"role-{uuid.uuid4().hex}")
        assert store.read(f"{at}k") == Entry(f"{at}k", b"after", version)


def test_a_watch_comes_back_with_a_new_token_after_a_restart(etcd: SecureEtcd, at: str, observer: Observer) -> None:
    """The token has run out when the watch connects again; it is told so, logs in, and misses nothing in silence."""
    with etcd.open(user="agent") as store, etcd.open("agent") as writer:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        etcd.wait_for_the_end_of_a_token()
        writer.commit({}, {f"{at}k": b"a running watch needs no token"})
        observer.wait_for(f"{at}k", b"a running watch needs no token")
        gaps = observer.gaps
        etcd.kill()
        etcd.revive()
        etcd.wait_until_serving()
        observer.wait_for_gap(after=gaps)
        version = writer.commit({}, {f"{at}k": b"after"})
        assert observer.wait_for(f"{at}k", b"after").version == version


def test_new_certificates_of_a_new_authority_are_taken_up_by_a_running_store(
    etcd: SecureEtcd, at: str, observer: Observer
) -> None:
    """Calls and watches alike, without a restart of ours, although not one old certificate is good any more."""
    with etcd.open("agent") as store:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        lease = store.hold(f"{at}lease", b"v", 60_000)
        old = {path.name: path.read_bytes() for path in etcd.papers.directory.iterdir()}
        gaps = observer.gaps
        etcd.papers.issue()
        etcd.kill()
        etcd.revive()
        etcd.wait_until_serving()
        assert _handshake_fails(etcd, old)
        lease.keep_alive()
        version = store.commit({}, {f"{at}k": b"v"})
        observer.wait_for_gap(after=gaps)
        assert store.read(f"{at}k") == Entry(f"{at}k", b"v", version)
        store.commit({}, {f"{at}k": b"w"})
        observer.wait_for(f"{at}k", b"w")


def _handshake_fails(etcd: SecureEtcd, pem: dict[str, bytes]) -> bool:
    credentials = grpc.ssl_channel_credentials(pem["ca.pem"], pem["agent.key"], pem["agent.pem"])
    with contextlib.closing(grpc.secure_channel(etcd.server, credentials)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=1.0)
        except grpc.FutureTimeoutError:
            return True
    return False


def test_half_renewed_files_do_not_stop_a_store_and_are_named(etcd: SecureEtcd, at: str, observer: Observer) -> None:
    """A key without its certificate is not taken up; when the old pair fails as well, the sentence says both.

    A watch waits for good files, and says in the log what it waits for.
    """
    key = etcd.papers.directory / "agent.key"
    good = key.read_bytes()
    with capture_logs() as log, etcd.open("agent", request_timeout_ms=1_000) as store:
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        store.commit({}, {f"{at}k": b"v"})
        gaps = observer.gaps
        try:
            key.write_bytes((etcd.papers.directory / "root.key").read_bytes())
            assert store.read(f"{at}k") is not None
            etcd.kill()
            with pytest.raises(StoreUnavailable, match=r"the TLS files have changed, but cert_file .*belong together"):
                _fail_twice(store, at)
            wait_until(
                lambda: any("belong together" in line["why"] for line in log if line["event"] == "watch interrupted"),
                what="a word of the watch about the files",
            )
        finally:
            key.write_bytes(good)
            etcd.revive()
            etcd.wait_until_serving()
        entry = wait_until(lambda: _read_or_none(store, f"{at}k"), what="the store back with the good files")
        assert entry.value == b"v"
        observer.wait_for_gap(after=gaps)


def _fail_twice(store: Store, at: str) -> None:
    with contextlib.suppress(StoreUnavailable):
        store.read(f"{at}k")
    store.read(f"{at}k")


def _read_or_none(store: Store, key: str) -> Entry | None:
    with contextlib.suppress(StoreUnavailable):
        return store.read(key)
    return None


def test_a_login_without_tls_works_where_the_server_allows_it(etcd: SecureEtcd) -> None:
    """The repr of what holds the password does not show it."""
    login = Login(username="agent", password=PASSWORDS["agent"])
    with EtcdStore([etcd.server], login=login) as store:
        assert store.address == f"etcd://{etcd.server}"
        with pytest.raises(StoreUnavailable, match="it may want TLS") as refused:
            store.read("k")
    assert PASSWORDS["agent"] not in str(refused.value) + repr(login) + repr(store)
