"""ZooKeeper over TLS, and znodes that belong to a user: who gets in, and what the others are told."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator

import pytest
from kazoo.client import KazooClient
from kazoo.security import CREATOR_ALL_ACL, make_digest_acl
from structlog.testing import capture_logs

from killswitch.stores import Conflict, Entry, LeaseLost, Store, StoreForbidden, StoreUnavailable, open_store
from killswitch.stores.urls import Login
from killswitch.stores.zookeeper.store import ZooKeeperStore
from tests.conformance.rigs.base import PATIENT_MS
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.zookeeper import ZooKeeperContainerRig, open_zookeeper
from tests.conformance.rigs.zookeeper_secure import SERVER_NAME, SecureZooKeeper
from tests.conformance.tls_relay import TlsRelay
from tests.images.choose import choose_image, do_without_ryuk_where_it_cannot_be_had, require_docker
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

LEASE_TTL_MS = 20_000
OWNER = Login(username="agent", password="agent:secret")
IMPOSTOR = Login(username="agent", password="guessed")


@pytest.fixture(scope="module")
def image() -> str:
    """The image of ZooKeeper."""
    client = require_docker()
    try:
        do_without_ryuk_where_it_cannot_be_had(client)
        return choose_image(client, "zookeeper")
    finally:
        client.close()


@pytest.fixture(scope="module")
def plain(image: str) -> Iterator[ZooKeeperContainerRig]:
    """A server in the clear."""
    made = ZooKeeperContainerRig(image)
    yield made
    made.close()


@pytest.fixture(scope="module")
def rig(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureZooKeeper]:
    """A server with TLS, in place of the one server of the shared suite."""
    made = SecureZooKeeper(image, tmp_path_factory.mktemp("papers"))
    yield made
    made.close()


@pytest.fixture
def secure(rig: SecureZooKeeper, nothing_left_behind: None) -> SecureZooKeeper:
    """The server with TLS."""
    return rig


@pytest.fixture
def at() -> str:
    """A prefix that no other test uses."""
    return f"/test/{uuid.uuid4().hex}/"


def use_every_call(store: Store, at: str, observer: Observer) -> None:
    """Each method of the port, with its outcome looked at."""
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


def open_plain(plain: ZooKeeperContainerRig, login: Login | None) -> ZooKeeperStore:
    """A client of the server in the clear."""
    return open_zookeeper(plain.server, request_timeout_ms=PATIENT_MS, login=login)


def all_calls(store: Store, at: str) -> dict[str, Callable[[], object]]:
    """One of each request that touches what is there."""
    return {
        "read": lambda: store.read(f"{at}k"),
        "scan": lambda: store.scan(at),
        "blind commit": lambda: store.commit({}, {f"{at}k": b"mine"}),
        "commit of a new key": lambda: store.commit({f"{at}new": None}, {f"{at}new": b"mine"}),
        "deletion": lambda: store.commit({}, {}, [f"{at}k"]),
        "hold": lambda: store.hold(f"{at}held", b"mine", LEASE_TTL_MS),
    }


def test_a_user_has_its_znodes_to_itself(
    plain: ZooKeeperContainerRig, nothing_left_behind: None, at: str, observer: Observer
) -> None:
    """Everything works for who made them; a wrong password and no password are forbidden everything, and told why."""
    with open_plain(plain, OWNER) as owner:
        use_every_call(owner, at, observer)
        before = owner.scan(at)
        for login in (IMPOSTOR, None):
            with open_plain(plain, login) as other:
                for call in all_calls(other, at).values():
                    with pytest.raises(StoreForbidden, match="belong to another user, or the password is wrong"):
                        call()
        assert owner.scan(at) == before


def test_a_url_names_the_user_and_shows_no_password(
    plain: ZooKeeperContainerRig, nothing_left_behind: None, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the address, nor in errors, nor in the log, not even where everything is logged."""
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs, open_plain(plain, OWNER) as owner:
        owner.commit({}, {f"{at}k": b"v"})
        url = f"zookeeper://agent:guessed@{plain.server}"
        with open_store(url, request_timeout_ms=PATIENT_MS) as other:
            observer = Observer()
            watch = other.watch(at, observer.on_change, observer.on_gap)
            wait_until(lambda: any(line["event"] == "watch interrupted" for line in logs), what="a word in the log")
            watch.close()
            assert observer.said == []
            with pytest.raises(StoreForbidden) as caught:
                other.read(f"{at}k")
            assert other.address == f"zookeeper://{plain.server}"
    for shown in (str(caught.value), repr(caught.value.__cause__), repr(logs), caplog.text, repr(other.__dict__)):
        assert "guessed" not in shown
        assert "agent:secret" not in shown


def test_a_chroot_that_others_may_not_create_is_enough(
    plain: ZooKeeperContainerRig, nothing_left_behind: None, at: str
) -> None:
    """An operator made it for our user, below a znode that our user may not write to."""
    name = uuid.uuid4().hex
    admin = KazooClient(hosts=plain.server, auth_data=[("digest", "admin:secret")])
    admin.start()
    try:
        admin.create(f"/{name}", acl=CREATOR_ALL_ACL)
        ours = make_digest_acl(OWNER.username, OWNER.password, all=True)
        admin.create(f"/{name}/ours", acl=[ours])
    finally:
        admin.stop()
        admin.close()
    with open_zookeeper(plain.server, request_timeout_ms=PATIENT_MS, login=OWNER, chroot=f"/{name}/ours") as store:
        version = store.commit({f"{at}k": None}, {f"{at}k": b"v"})
        assert store.read(f"{at}k") == Entry(f"{at}k", b"v", version)
    with (
        open_zookeeper(plain.server, request_timeout_ms=PATIENT_MS, login=OWNER, chroot=f"/{name}/theirs") as store,
        pytest.raises(StoreForbidden, match="NoAuth"),
    ):
        store.commit({}, {f"{at}k": b"v"})


def test_everything_works_over_tls(secure: SecureZooKeeper, at: str, observer: Observer) -> None:
    """By URL, as an operator writes it."""
    files = secure.files()
    url = (
        f"zookeeper+tls://{secure.server}/secure"
        f"?ca_file={files.ca_file}&cert_file={files.cert_file}&key_file={files.key_file}"
    )
    with open_store(url, request_timeout_ms=PATIENT_MS) as store:
        assert store.address == f"zookeeper+tls://{secure.server}/secure"
        use_every_call(store, at, observer)
        assert isinstance(store, ZooKeeperStore)
        assert store.server_version().startswith("3.")


def test_replies_that_come_in_one_piece_are_read_in_one_go(
    plain: ZooKeeperContainerRig, secure: SecureZooKeeper, at: str, observer: Observer
) -> None:
    """Some that end TLS in front of a server gather what they send. What was decrypted with a reply is not left lying
    until the network stirs again."""
    with (
        TlsRelay(plain.server, secure.directory) as relay,
        open_zookeeper(relay.server, request_timeout_ms=PATIENT_MS, tls=secure.files(), login=OWNER) as warm,
    ):
        warm.read(f"{at}k")
        # Less than kazoo takes to its next ping, which stirs the network.
        with open_zookeeper(
            relay.server, request_timeout_ms=2_500, alive_every_ms=500, tls=secure.files(), login=OWNER
        ) as store:
            store.watch(at, observer.on_change, observer.on_gap)
            observer.wait_for_gap()
            keys = [f"{at}{number:02}" for number in range(20)]
            version = store.commit({}, dict.fromkeys(keys, b"v"))
            assert store.read(keys[0]) == Entry(keys[0], b"v", version)
            assert [entry.key for entry in store.scan(at)] == keys
            for key in keys:
                observer.wait_for(key, b"v")
            assert observer.gaps == 1
        assert relay.gathered > 0


@pytest.mark.parametrize("wrong", ["authority", "client", "no client", "name", "no tls"])
def test_who_cannot_be_trusted_gets_no_answer(secure: SecureZooKeeper, at: str, wrong: str) -> None:
    """On either side; the sentence says what is the matter."""
    files = {
        "authority": secure.files(ca="other-ca.pem"),
        "client": secure.files("stranger"),
        "no client": secure.files(None),
        "name": secure.files(server_name="other.example"),
        "no tls": None,
    }[wrong]
    why = {
        "authority": "certificate is not to be trusted",
        "name": "certificate is not to be trusted.*other.example",
    }.get(wrong, "did not answer")
    with (
        open_zookeeper(secure.server, request_timeout_ms=1_000, tls=files) as store,
        pytest.raises(StoreUnavailable, match=why),
    ):
        store.commit({}, {f"{at}k": b"v"})


def test_a_server_is_known_by_the_name_that_is_asked_for(secure: SecureZooKeeper, at: str) -> None:
    """Reached as ``localhost``, which its certificate does not bear, it is taken by ``server_name`` alone."""
    server = f"localhost:{secure.server.rpartition(':')[2]}"
    with open_zookeeper(server, request_timeout_ms=PATIENT_MS, tls=secure.files(server_name=SERVER_NAME)) as store:
        assert store.read(f"{at}k") is None
    with (
        open_zookeeper(server, request_timeout_ms=2_000, tls=secure.files()) as store,
        pytest.raises(StoreUnavailable, match="not to be trusted"),
    ):
        store.read(f"{at}k")


def test_a_key_file_that_is_none_is_found_when_the_store_is_opened(secure: SecureZooKeeper) -> None:
    """Before anybody relies on it."""
    files = secure.files()
    with pytest.raises(ValueError, match=f"key_file {files.cert_file} cannot be used"):
        open_store(
            f"zookeeper+tls://{secure.server}?ca_file={files.ca_file}&cert_file={files.cert_file}"
            f"&key_file={files.cert_file}"
        )
