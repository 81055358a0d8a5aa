"""One ZooKeeper that speaks TLS only, and wants a certificate of its clients."""

from __future__ import annotations

from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

from killswitch.stores.urls import TlsFiles
from tests.conformance.rigs.base import wait_until_serving
from tests.conformance.rigs.zookeeper import SECURE_PORT, SERVES_WITHIN_MS, ZooKeeperServer, open_zookeeper

SERVER_NAME = "zookeeper.example"
SETTINGS = (
    SECURE_PORT,
    "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory",
    "ssl.keyStore.location=/mounted/server.keystore.pem",
    "ssl.keyStore.type=PEM",
    "ssl.trustStore.location=/mounted/ca.pem",
    "ssl.trustStore.type=PEM",
    "ssl.clientAuth=need",
)


class SecureZooKeeper(ZooKeeperServer):
    """The server; its certificate bears 127.0.0.1, and not ``localhost``.

    Args:
        image: of ZooKeeper.
        directory: for the certificates.
    """

    kind = "zookeeper with TLS"

    def __init__(self, image: str, directory: Path) -> None:
        self.directory = directory
        authority, stranger = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        stranger.cert_pem.write_to_path(str(directory / "other-ca.pem"))
        self._write_keystore(authority.issue_cert("127.0.0.1", SERVER_NAME))
        self._write("agent", authority.issue_cert("agent.example"))
        self._write("stranger", stranger.issue_cert("agent.example"))
        super().__init__(image, *SETTINGS, mount=directory)
        try:
            self.wait_until_serving()
        except BaseException:
            self.close()
            raise

    def files(self, who: str | None = "agent", *, ca: str = "ca.pem", server_name: str | None = None) -> TlsFiles:
        """What a client of this name uses; no certificate of its own without a name."""
        return TlsFiles(
            ca_file=self.directory / ca,
            cert_file=self.directory / f"{who}.pem" if who else None,
            key_file=self.directory / f"{who}.key" if who else None,
            server_name=server_name,
        )

    def wait_until_serving(self) -> None:
        """Wait until a client with a certificate gets a read through."""
        wait_until_serving(
            lambda: open_zookeeper(self.server, request_timeout_ms=SERVES_WITHIN_MS, tls=self.files()),
            f"ZooKeeper at {self.server}, over TLS",
        )

    def _write(self, name: str, issued: trustme.LeafCert) -> None:
        issued.private_key_pem.write_to_path(str(self.directory / f"{name}.key"))
        (self.directory / f"{name}.pem").write_bytes(_chain(issued))

    def _write_keystore(self, issued: trustme.LeafCert) -> None:
        """Key and certificate in one file, the key in the form that Java reads."""
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.directory / "server.keystore.pem").write_bytes(key + _chain(issued))


def _chain(issued: trustme.LeafCert) -> bytes:
    return b"".join(pem.bytes() for pem in issued.cert_chain_pems)
