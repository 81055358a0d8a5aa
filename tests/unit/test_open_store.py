"""URLs of stores: what opens what, and what is said about a bad one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from killswitch.stores import Store, open_store
from killswitch.stores.etcd import EtcdStore
from killswitch.stores.memory import MemoryStore


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("etcd://h1:2379,h2:2380", "etcd://h1:2379,h2:2380"),
        ("etcd://h1", "etcd://h1:2379"),
        ("etcd://h1:1/", "etcd://h1:1"),
        ("etcd://[::1]:2379", "etcd://[::1]:2379"),
    ],
)
def test_an_etcd_url_names_servers(url: str, address: str) -> None:
    """Several servers, the port by default, and IPv6; opening sends nothing."""
    with open_store(url) as store:
        assert isinstance(store, EtcdStore)
        assert store.address == address


def test_memory_urls_of_one_name_share_their_data() -> None:
    """The name is all that distinguishes two memory stores."""
    with (
        open_store("memory://a-name") as one,
        open_store("memory://a-name") as two,
        open_store("memory://") as nameless,
    ):
        assert isinstance(one, MemoryStore)
        one.commit({}, {"k": b"v"})
        assert two.read("k") == one.read("k")
        assert nameless.read("k") is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "write etcd://HOST:PORT"),
        ("h1:2379", "write etcd://HOST:PORT"),
        ("mysql://h1", "mysql:// is no store that is known here; write etcd://"),
        ("etcds://h1:2379", "etcds:// is not supported yet; write etcd://"),
        ("redis://h1", "redis:// is not supported yet"),
        ("rediss://h1", "rediss:// is not supported yet"),
        ("redis+sentinel://h1/name", "redis\\+sentinel:// is not supported yet"),
        ("zookeeper://h1", "zookeeper:// is not supported yet"),
        ("etcd://", "'' is not the address of an etcd server; write etcd://HOST:PORT"),
        ("etcd://h1,,h2", "'' is not the address"),
        ("etcd://h1:port", "'h1:port' is not the address"),
        ("etcd://h1:99999", "'h1:99999' is not the address"),
        ("etcd://h1:0", "'h1:0' is not the address"),
        ("etcd://h1/path", "has no path, and this one has '/path'"),
        ("etcd://h1?tls=1", "takes no options"),
        ("embedded://relative/path", "names no directory; write embedded:///absolute/directory"),
        ("embedded://", "names no directory"),
        ("embedded:///", "names no directory"),
    ],
)
def test_a_bad_url_is_refused_with_what_to_write(url: str, said: str) -> None:
    """Each mistake has a sentence of its own that ends with a form that works."""
    with pytest.raises(ValueError, match=said):
        open_store(url)


def test_a_password_in_a_url_is_not_repeated() -> None:
    """The error about it may end in a log."""
    with pytest.raises(ValueError, match="user and password") as caught:
        open_store("etcd://me:secret@h1:2379")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("bad", [{"request_timeout_ms": 0}, {"backoff_cap_ms": -1}])
def test_times_that_are_not_positive_are_refused(bad: dict[str, int]) -> None:
    """A time-out of nothing would fail every call."""
    with pytest.raises(ValueError, match="greater than 0"):
        open_store("memory://x", **bad)


def test_importing_the_stores_imports_no_client_library() -> None:
    """The guard and every command pay for what they use: neither grpc nor structlog comes with the package."""
    check = "import sys, killswitch.stores; print([m for m in ('grpc', 'pyetcd', 'structlog') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_store_is_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The types agree with the port; mypy checks what this line says."""
    stores: list[Store] = [open_store("memory://x"), open_store("etcd://h1")]
    for store in stores:
        store.close()
