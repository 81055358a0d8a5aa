"""URLs of Redis, what they mean, and what a store says of itself before it has connected to anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trustme

from killswitch.stores import open_store
from killswitch.stores.front import key_bytes, key_text
from killswitch.stores.redis.scripts import lexical_range
from killswitch.stores.redis.sockets import Dialler, Resolver
from killswitch.stores.redis.store import RedisStore


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h1", "redis://h1:6379"),
        ("redis://h1:7000/3", "redis://h1:7000/3"),
        ("redis://me:secret@[::1]:6379/", "redis://[::1]:6379"),
        ("rediss://h1", "rediss://h1:6379"),
        ("redis+sentinel://h1,h2:26380/main", "redis+sentinel://h1:26379,h2:26380/main"),
        ("redis+sentinel://me:secret@h1/main/2", "redis+sentinel://h1:26379/main/2"),
        ("rediss+sentinel://h1/main", "rediss+sentinel://h1:26379/main"),
    ],
)
def test_a_redis_url_is_opened_without_sending_anything(url: str, address: str) -> None:
    """The address is the URL without its secrets."""
    with open_store(url) as store:
        assert isinstance(store, RedisStore)
        assert store.address == address
        assert "secret" not in repr(store)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h1/db", r"'/db' names no database of Redis; write its number, redis://HOST:PORT/DB"),
        ("redis://h1/1/2", r"'/1/2' names no database"),
        ("redis://h1/-1", r"names no database"),
        ("redis://h1/²", r"names no database"),
        ("redis://h1//", r"names no database"),
        ("redis+sentinel://h1", r"ends in the name .*redis\+sentinel://HOST:PORT/NAME/DB"),
        ("redis+sentinel://h1//1", r"ends in the name"),
        ("redis+sentinel://h1/main/x", r"names no database"),
        ("redis+sentinel://h1/main/1/2", r"names no database"),
    ],
)
def test_a_bad_path_is_refused_with_what_to_write(url: str, said: str) -> None:
    """Nothing is guessed: a flag in another database would be no flag."""
    with pytest.raises(ValueError, match=said):
        open_store(url)


def test_certificates_that_are_none_are_refused_with_their_names(tmp_path: Path) -> None:
    """At once, and not at the first freeze."""
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("no certificate")
    with pytest.raises(ValueError, match=rf"ca_file {nonsense} cannot be used .*must hold certificates"):
        open_store(f"rediss://h1?ca_file={nonsense}")
    issued = trustme.CA().issue_cert("h1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(certificate)
    trustme.CA().issue_cert("h1").private_key_pem.write_to_path(key)
    with pytest.raises(ValueError, match=rf"cert_file {certificate} and key_file {key} cannot .*belong together"):
        open_store(f"rediss://h1?cert_file={certificate}&key_file={key}")


@pytest.mark.parametrize(
    ("url", "linearizable", "said"),
    [
        ("redis://h1", True, "One Redis"),
        ("redis+sentinel://h1/main", False, "With wait_replicas=1 an old primary that is cut off answers nobody"),
        ("redis+sentinel://h1/main?wait_replicas=2", False, "With wait_replicas=2 an old primary"),
        ("redis+sentinel://h1/main?wait_replicas=0", False, "With wait_replicas=0 an old primary .* goes on answering"),
    ],
)
def test_what_redis_may_forget_is_declared(url: str, linearizable: bool, said: str) -> None:
    """No kind of Redis claims to survive a failover, and Sentinel waits for a replica unless told otherwise."""
    with open_store(url) as store:
        assert store.guarantees.linearizable_reads is linearizable
        assert not store.guarantees.survives_failover
        assert store.guarantees.atomic_multi_key
        assert "appendfsync" in store.guarantees.note
        assert "forget" in store.guarantees.note
        assert re.search(said, store.guarantees.note)


def test_a_lease_that_outlives_everybody_is_refused() -> None:
    """Redis would refuse it in the middle of a script."""
    with open_store("redis://h1") as store, pytest.raises(ValueError, match="at most 315360000000"):
        store.hold("k", b"v", 2**62)


@pytest.mark.parametrize(
    ("prefix", "first", "end"),
    [
        ("a/", b"[a/", b"(a0"),
        ("", b"[", b"+"),
        ("é", b"[\xc3\xa9", b"(\xc3\xaa"),
        ("a\udcff", b"[a\xff", b"(b"),
        ("\udcff", b"[\xff", b"+"),
        ("-", b"[-", b"(."),
    ],
)
def test_the_range_of_a_prefix_ends_before_its_next_neighbour(prefix: str, first: bytes, end: bytes) -> None:
    """In the order of bytes, in which Redis keeps names of one score."""
    assert lexical_range(prefix) == (first, end)


def test_keys_that_are_no_text_survive_the_way_there_and_back() -> None:
    """Somebody may have put them there by other means."""
    assert key_bytes(key_text(b"a\xff\0")) == b"a\xff\0"


def test_addresses_of_ipv6_lose_their_brackets() -> None:
    """The kernel does not know them."""
    dialler = Dialler("[::1]:6379", Resolver(), None)
    assert (dialler.host, dialler.port) == ("::1", 6379)
