"""URLs of stores: what opens what, and what is said about a bad one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.stores import Store, open_store
from killswitch.stores.etcd.store import EtcdStore
from killswitch.stores.memory import MemoryStore
from killswitch.stores.urls import Login, TlsFiles, parse_store_url


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
        ("etcd://[::1", "'\\[::1' is not the address of an etcd server; write etcd://HOST:PORT"),
        ("etcd://h1,[::1", "'\\[::1' is not the address"),
        ("etcd://::1", "'::1' is not the address"),
        ("etcd://[::1]]:7", "'\\[::1\\]\\]:7' is not the address"),
        ("etcd://[1.2.3.4]:7", "'\\[1.2.3.4\\]:7' is not the address"),
        ("etcd://[h1]:7", "'\\[h1\\]:7' is not the address"),
        ("etcd://[::1]7", "'\\[::1\\]7' is not the address"),
        ("etcd://h1\n:7", "is not the address"),
        ("etcd://h 1", "'h 1' is not the address"),
        ("etcd://h\uff0f1", "is not the address"),
        ("etcd://", "'' is not the address of an etcd server; write etcd://HOST:PORT"),
        ("etcd://h1,,h2", "'' is not the address"),
        ("etcd://h1:port", "'h1:port' is not the address"),
        ("etcd://h1:99999", "'h1:99999' is not the address"),
        ("etcd://h1:0", "'h1:0' is not the address"),
        ("etcd://h1/path", "has no path, and this one has '/path'"),
        ("etcd://h1?tls=1", "takes no option 'tls' \\(it takes: password_file, username\\)"),
        ("etcd://h1?ca_file=/x", "takes no option 'ca_file' .*over TLS it does, as etcds://"),
        ("etcd://h1?username", "are written \\?name=value"),
        ("etcd://h1?username=", "needs a value"),
        ("etcd://h1?username=a&username=b", "is given once"),
        ("etcd://h1?username=me", "with username needs password_file as well"),
        ("etcd://h1?username=me&password_file=/absent", "password_file /absent cannot be read"),
        ("etcd://me@h1", "with a user needs a password"),
        ("etcd://h1#x", "takes nothing after '#'"),
        ("etcds://h1?ca_file=/absent", "ca_file /absent cannot be read"),
        ("etcds://h1?cert_file=/dev/null", "cert_file and key_file belong together"),
        ("redis://h1,h2", "names one server, and this one names 2; .*redis\\+sentinel://"),
        ("redis://h1?wait_replicas=-1", "wait_replicas is a number of replicas"),
        ("zookeeper://", "'' is not the address of a ZooKeeper server"),
        ("embedded://relative/path", "names no directory; write embedded:///absolute/directory"),
        ("embedded://", "names no directory"),
        ("embedded:///", "names no directory"),
        ("embedded:///x?y=z", "takes no option 'y' \\(it takes: none\\)"),
    ],
)
def test_a_bad_url_is_refused_with_what_to_write(url: str, said: str) -> None:
    """Each mistake has a sentence of its own that ends with a form that works."""
    with pytest.raises(ValueError, match=said):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "etcd://me:secret@h1:port",
        "etcd://me:secret@h1?password_file=/x",
        "mysql://me:secret@h1",
        "redis://me:secret@h1,h2",
        "redis://me:secret@h1?wait_replicas=some",
        "zookeeper://me:secret@h1#x",
        "me:secret@h1",
        "redis://me:secret@[h1",
        "me:secret@h1://x",
    ],
)
def test_a_password_in_a_url_is_not_repeated(url: str) -> None:
    """The error about it may end in a log."""
    with pytest.raises(ValueError, match=r"write|both|number|cannot") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_a_url_is_understood_as_a_whole(tmp_path: Path) -> None:
    """Logins, files and options end where they belong; what people see holds no secret."""
    password, ca = tmp_path / "password", tmp_path / "ca.pem"
    password.write_text("se:cret\n")
    ca.write_text("pem")
    url = parse_store_url(
        f"rediss+sentinel://h1,[::1]:7/main/2?username=agent&password_file={password}&sentinel_password_file={password}"
        f"&ca_file={ca}&server_name=redis.example&wait_replicas=2"
    )
    assert url.servers == ("h1:26379", "[::1]:7")
    assert url.path == "/main/2"
    assert url.login == Login(username="agent", password="se:cret")
    assert url.sentinel_login == Login(username="", password="se:cret")
    assert url.tls == TlsFiles(ca_file=ca, server_name="redis.example")
    assert url.wait_replicas == 2
    assert url.address == "rediss+sentinel://h1:26379,[::1]:7/main/2"
    in_url = parse_store_url("zookeeper://a%40b:p%3Aq%2F@h1/ch%20root")
    assert in_url.login == Login(username="a@b", password="p:q/")
    assert in_url.path == "/ch root"
    for shown in (repr(url), repr(in_url), in_url.address):
        assert "cret" not in shown
        assert "p:q" not in shown


SERVERS_BY_SCHEME = {
    "etcd": 2379,
    "redis+sentinel": 26_379,
    "rediss+sentinel": 26_379,
    "zookeeper": 2181,
    "zookeeper+tls": 2281,
    "etcds": 2379,
}
HOSTS = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
LISTS = st.lists(st.tuples(HOSTS, st.none() | st.integers(1, 65_535)), min_size=1, max_size=5)


@given(scheme=st.sampled_from(sorted(SERVERS_BY_SCHEME)), hosts=LISTS, login=st.sampled_from(["", "me:se%5Bcret@"]))
def test_every_list_of_hosts_is_understood_and_shown_as_it_was_written(
    scheme: str, hosts: list[tuple[str, int | None]], login: str
) -> None:
    """Names, IPv4 and IPv6, with ports and without, in any order: urllib knows no lists of them."""
    written = ",".join(host if port is None else f"{host}:{port}" for host, port in hosts)
    url = parse_store_url(f"{scheme}://{login}{written}/main")
    assert url.servers == tuple(f"{host}:{port or SERVERS_BY_SCHEME[scheme]}" for host, port in hosts)
    assert url.path == "/main"
    again = parse_store_url(url.address)
    assert (again.scheme, again.servers, again.path) == (url.scheme, url.servers, url.path)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
@given(host=HOSTS, port=st.integers(1, 65_535))
def test_a_single_host_of_any_kind_is_understood(scheme: str, host: str, port: int) -> None:
    """As above, for the schemes that name one server."""
    assert parse_store_url(f"{scheme}://{host}:{port}/3").servers == (f"{host}:{port}",)


def test_a_url_keeps_its_meaning_in_odd_clothes() -> None:
    """Capitals in scheme and host mean nothing, the name of an interface keeps them, and a line's end is no part."""
    url = parse_store_url(" ETCD://H1:1,[FE80::1%Eth0]\n")
    assert url.servers == ("h1:1", "[fe80::1%Eth0]:2379")


@pytest.mark.parametrize("bad", [{"request_timeout_ms": 0}, {"backoff_cap_ms": -1}])
def test_times_that_are_not_positive_are_refused(bad: dict[str, int]) -> None:
    """A time-out of nothing would fail every call."""
    with pytest.raises(ValueError, match="greater than 0"):
        open_store("memory://x", **bad)


def test_importing_the_stores_imports_no_client_library() -> None:
    """The guard and every command pay for what they use: no client library and no structlog comes with the package."""
    check = (
        "import sys, killswitch.stores; "
        "print([m for m in ('grpc', 'pyetcd', 'redis', 'kazoo', 'structlog') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_store_is_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The types agree with the port; mypy checks what this line says."""
    stores: list[Store] = [open_store("memory://x"), open_store("etcd://h1")]
    for store in stores:
        store.close()
