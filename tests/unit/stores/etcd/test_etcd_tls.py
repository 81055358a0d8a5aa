"""TLS files of an etcd store: what is said about bad ones, before gRPC sees them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from killswitch.stores import open_store
from killswitch.stores.etcd import channel
from killswitch.stores.etcd.credentials import _authorities, fingerprint
from killswitch.stores.etcd.store import EtcdStore
from killswitch.stores.tls import TlsFilesUnusable
from killswitch.stores.urls import TlsFiles


class Papers:
    """An authority, a certificate of it, and a key, in files."""

    def __init__(self, directory: Path) -> None:
        self.ca, self.cert, self.key = (directory / name for name in ("ca.pem", "agent.pem", "agent.key"))
        authority = trustme.CA()
        self.issued = authority.issue_cert("agent.example", common_name="agent")
        authority.cert_pem.write_to_path(str(self.ca))
        self.issued.cert_chain_pems[0].write_to_path(str(self.cert))
        self.issued.private_key_pem.write_to_path(str(self.key))

    def encrypt_key(self) -> None:
        """Protect the key with a password."""
        key = serialization.load_pem_private_key(self.key.read_bytes(), password=None)
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(ca_file=self.ca, cert_file=self.cert, key_file=self.key)


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    """Good ones."""
    return Papers(tmp_path)


def test_good_files_open_a_store_over_tls(papers: Papers) -> None:
    """Nothing is sent yet; people see that it is TLS."""
    url = (
        f"etcds://h1:1,h2:2?ca_file={papers.ca}&cert_file={papers.cert}&key_file={papers.key}&server_name=etcd.example"
    )
    with open_store(url) as store:
        assert store.address == "etcds://h1:1,h2:2"
    with EtcdStore(["h1:1"], tls=TlsFiles(ca_file=papers.ca)) as store:
        assert store.address == "etcds://h1:1"


SPOILED: dict[str, tuple[Callable[[Papers], object], str]] = {
    "authority is no PEM": (lambda papers: papers.ca.write_text("hello"), "ca_file .* cannot be used .*in PEM"),
    "authority is empty": (lambda papers: papers.ca.write_text(""), "ca_file .* cannot be used"),
    "authority is binary": (
        lambda papers: papers.ca.write_bytes(b"\xff\0\x80"),
        "ca_file .* cannot be used .*in PEM",
    ),
    "authority is gone": (lambda papers: papers.ca.unlink(), "ca_file .* cannot be read .No such file"),
    "certificate is no PEM": (lambda papers: papers.cert.write_text("hello"), "cert_file .* cannot be used .*PEM"),
    "certificate is gone": (lambda papers: papers.cert.unlink(), "cert_file .* cannot be read .No such file"),
    "key is no PEM": (lambda papers: papers.key.write_text("hello"), "key_file .* cannot be used .*PEM"),
    "key is of another": (
        lambda papers: trustme.CA().issue_cert("x").private_key_pem.write_to_path(str(papers.key)),
        "cannot be used .*mismatch.*belong together",
    ),
    "key is encrypted": (lambda papers: papers.encrypt_key(), "cannot be used .*the key must not be encrypted"),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_bad_file_is_named_when_the_store_is_opened(papers: Papers, spoiled: str) -> None:
    """A sentence with the file in it, never a question on the terminal, never a crash in the first call."""
    spoil, said = SPOILED[spoiled]
    spoil(papers)
    with pytest.raises(TlsFilesUnusable, match=said) as refused:
        EtcdStore(["h1:1"], tls=papers.files)
    assert isinstance(refused.value, ValueError)
    assert "PRIVATE KEY" not in str(refused.value)


def test_without_an_authority_those_of_the_system_are_trusted(
    papers: Papers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the URL says: not gRPC's own list, which no administrator of this machine has seen."""
    monkeypatch.setenv("SSL_CERT_FILE", str(papers.ca))
    assert _authorities(None) == papers.ca.read_bytes()
    hashed = tmp_path / "hashed"
    hashed.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("SSL_CERT_DIR", str(hashed))
    assert ssl.get_default_verify_paths().cafile is None
    with pytest.raises(TlsFilesUnusable, match="this system names no authorities that it trusts; give ca_file"):
        EtcdStore(["h1:1"], tls=TlsFiles())
    (hashed / "0a1b2c3d.0").symlink_to(papers.ca)
    assert _authorities(None) == papers.ca.read_bytes()


def test_a_renewed_or_replaced_file_is_noticed(papers: Papers, tmp_path: Path) -> None:
    """Written in place, or exchanged by a link as Kubernetes does it; a file that is gone is a change, too."""
    seen = {fingerprint(papers.files)}
    assert fingerprint(papers.files) in seen
    status = papers.cert.stat()
    os.utime(papers.cert, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.add(fingerprint(papers.files))
    (tmp_path / "next").write_bytes(papers.key.read_bytes())
    (tmp_path / "next").replace(papers.key)
    seen.add(fingerprint(papers.files))
    papers.ca.unlink()
    seen.add(fingerprint(papers.files))
    assert len(seen) == 4


def test_renewed_files_are_taken_up_under_a_log_that_cannot_be_written(
    papers: Papers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that takes them up is answered or unavailable; it is no place to hear of a full disk."""

    class FullDisk:
        def info(self, event: str, **_: object) -> None:
            raise OSError(28, event)

    monkeypatch.setattr(channel, "_log", FullDisk())
    link = channel.Link("127.0.0.1:1", grpc.insecure_channel, papers.files)
    status = papers.cert.stat()
    os.utime(papers.cert, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    try:
        assert link.take_up_renewed_files()
    finally:
        link.close()
