"""One etcd with TLS, client certificates, users and passwords."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pyetcd import etcdrpc
from pyetcd.etcdrpc import auth_pb2

from killswitch.stores.etcd.store import EtcdStore
from killswitch.stores.urls import Login, TlsFiles
from tests.conformance.rigs.base import PATIENT_BACKOFF_CAP_MS, SERVES_AGAIN_WITHIN_S
from tests.conformance.rigs.etcd_cluster import EtcdMember
from tests.support.waiting import wait_until

TOKEN_TTL_S = 2
ALLOWED_PREFIX = "/test/"
PASSWORDS = {"root": "root-secret", "agent": "agent-secret"}
SERVER_FLAGS = (
    "--cert-file=/mounted/server.pem",
    "--key-file=/mounted/server.key",
    "--trusted-ca-file=/mounted/ca.pem",
    "--client-cert-auth",
    # Checking a password is to take no time here.
    "--bcrypt-cost=4",
)
TOKEN_FLAGS = {
    "simple": (f"--auth-token-ttl={TOKEN_TTL_S}",),
    "jwt": (
        "--auth-token=jwt,pub-key=/mounted/jwt.pub,priv-key=/mounted/jwt.key,sign-method=RS256,"
        + f"ttl={TOKEN_TTL_S}s",
    ),
}


class Papers:
    """Certificates of one authority, as files in a directory. ``agent`` and ``root`` are users, ``nobody`` is none."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.issue()
        key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        (directory / "jwt.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        (directory / "jwt.pub").write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    def issue(self) -> None:
        """Write certificates of a new authority over those of the old one."""
        authority, stranger = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(str(self.directory / "ca.pem"))
        stranger.cert_pem.write_to_path(str(self.directory / "other-ca.pem"))
        # etcd shows the server's certificate to itself, too, as a client.
        self._write("server", authority.issue_cert("127.0.0.1", "etcd.example"))
        for name in ("root", "agent", "nobody"):
            self._write(name, authority.issue_cert(f"{name}.example", common_name=name))
        self._write("stranger", stranger.issue_cert("agent.example", common_name="agent"))

    def files(self, who: str | None, *, ca: str = "ca.pem", server_name: str | None = None) -> TlsFiles:
        """What a client of this name uses; none of its own without a name."""
        return TlsFiles(
            ca_file=self.directory / ca,
            cert_file=self.directory / f"{who}.pem" if who else None,
            key_file=self.directory / f"{who}.key" if who else None,
            server_name=server_name,
        )

    def _write(self, name: str, issued: trustme.LeafCert) -> None:
        issued.private_key_pem.write_to_path(str(self.directory / f"{name}.key"))
        (self.directory / f"{name}.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))


class SecureEtcd(EtcdMember):
    """The server.

    Args:
        image: of etcd.
        directory: for the certificates.
        tokens: ``simple`` or ``jwt``. They run out after :data:`TOKEN_TTL_S`.
    """

    def __init__(self, image: str, directory: Path, tokens: str) -> None:
        self.kind = f"etcd with TLS and {tokens} tokens"
        self.papers = Papers(directory)
        super().__init__(image, *SERVER_FLAGS, *TOKEN_FLAGS[tokens], scheme="https", mount=directory)
        try:
            self.wait_until_serving()
            self._make_users()
        except BaseException:
            self.close()
            raise

    def open(
        self,
        who: str | None = "nobody",
        *,
        user: str | None = None,
        password: str | None = None,
        tls: TlsFiles | None = None,
        server: str | None = None,
        request_timeout_ms: int = 10_000,
    ) -> EtcdStore:
        """A client.

        Args:
            who: whose certificate it shows.
            user: who logs in, if anybody.
            password: another than the right one.
            tls: other files than those of ``who``.
            server: another ``host:port``.
            request_timeout_ms: time of a call.
        """
        return EtcdStore(
            [server or self.server],
            request_timeout_ms=request_timeout_ms,
            backoff_cap_ms=PATIENT_BACKOFF_CAP_MS,
            login=Login(username=user, password=password or PASSWORDS[user]) if user else None,
            tls=tls or self.papers.files(who),
        )

    @contextlib.contextmanager
    def channel(self, who: str) -> Iterator[Any]:
        """A channel that is not the product's, with the certificates as they are now."""
        read = {name: (self.papers.directory / name).read_bytes() for name in ("ca.pem", f"{who}.key", f"{who}.pem")}
        credentials = grpc.ssl_channel_credentials(*read.values())
        channel = grpc.secure_channel(self.server, credentials, options=[("grpc.use_local_subchannel_pool", 1)])
        try:
            yield channel
        finally:
            channel.close()

    def wait_for_the_end_of_a_token(self) -> None:
        """Log in from aside, and wait until the server refuses that token for having run out."""
        with self.channel("nobody") as channel:
            login = etcdrpc.AuthenticateRequest(name="agent", password=PASSWORDS["agent"])
            token = str(etcdrpc.AuthStub(channel).Authenticate(login, timeout=5).token)
            used_s = time.monotonic()

            def refused() -> bool:
                nonlocal used_s
                # Every use of a simple token begins its time anew, so it is not looked at too often.
                if time.monotonic() - used_s < TOKEN_TTL_S + 1.0:
                    return False
                used_s = time.monotonic()
                look = etcdrpc.RangeRequest(key=ALLOWED_PREFIX.encode())
                try:
                    etcdrpc.KVStub(channel).Range(look, timeout=5, metadata=(("token", token),))
                except grpc.RpcError as error:
                    return "invalid auth token" in str(error)
                return False

            wait_until(refused, within_s=10.0 * TOKEN_TTL_S, what="the end of a token")

    def add_role(self, name: str) -> None:
        """Change something about users and roles; it does not matter what."""
        with self.channel("root") as channel:
            etcdrpc.AuthStub(channel).RoleAdd(etcdrpc.AuthRoleAddRequest(name=name), timeout=5)

    def wait_until_serving(self) -> None:
        """Wait until ``root`` gets a read through."""

        def serves() -> bool:
            with contextlib.suppress(grpc.RpcError), self.channel("root") as channel:
                etcdrpc.KVStub(channel).Range(etcdrpc.RangeRequest(key=b"serving?"), timeout=1)
                return True
            return False

        wait_until(serves, within_s=SERVES_AGAIN_WITHIN_S, what="etcd serving over TLS")

    def _make_users(self) -> None:
        allowed = auth_pb2.Permission(
            permType=auth_pb2.Permission.READWRITE,
            key=ALLOWED_PREFIX.encode(),
            range_end=ALLOWED_PREFIX[:-1].encode() + b"0",
        )
        with self.channel("root") as channel:
            auth = etcdrpc.AuthStub(channel)
            for name, password in PASSWORDS.items():
                auth.UserAdd(etcdrpc.AuthUserAddRequest(name=name, password=password), timeout=5)
                auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name=name), timeout=5)
                auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user=name, role=name), timeout=5)
            auth.RoleGrantPermission(etcdrpc.AuthRoleGrantPermissionRequest(name="agent", perm=allowed), timeout=5)
            auth.AuthEnable(etcdrpc.AuthEnableRequest(), timeout=5)
