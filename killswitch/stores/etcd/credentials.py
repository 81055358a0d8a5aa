"""Who we are to etcd, and whom we trust.

A user and a password become a token, which goes with every call. Tokens run out (after 5 minutes without use by
default), are forgotten by a server that restarts, and go stale when somebody changes users or roles. All of that shows
as a refused call, so a token is kept until one is refused. A token from one member is good at all of them: etcd gives
out simple tokens by consensus, and signed ones need none.

The TLS files of a URL become credentials of gRPC. It takes bytes and complains about bad ones on stderr, once per
connection. So the standard library looks at the files first: its errors can be told to a person.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any

import grpc
from pyetcd import etcdrpc

from killswitch import clock
from killswitch.stores.etcd import failures
from killswitch.stores.timing import NANOSECONDS_PER_S
from killswitch.stores.tls import TlsFilesUnusable, client_context
from killswitch.stores.urls import Login, TlsFiles

Metadata = tuple[tuple[str, str], ...]

# A member that has lost its leader refuses at once, instead of letting the request wait until it times out.
REQUIRE_LEADER: Metadata = (("hasleader", "true"),)
TOKEN_FIELD = "token"  # noqa: S105 - etcd's name of the field


class LoginBusy(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """Another call was logging in all the time."""

    def __init__(self) -> None:
        super().__init__("another call was still logging in")


class TokenKeeper:
    """The token of one login, shared by all calls and watches of a store. Thread-safe.

    Args:
        login: user and password.
        now_ns: clock of the time-outs.
    """

    def __init__(self, login: Login, now_ns: clock.NowNs) -> None:
        self._login = login
        self._now_ns = now_ns
        # Held while logging in: checking a password takes a server some 50 ms of work, and once is enough.
        self._lock = threading.Lock()
        self._metadata: Metadata | None = None

    def metadata(self, channel: Any, timeout_s: float) -> Metadata:
        """What a call must carry, after logging in over ``channel`` when there is no token yet.

        It is empty when the server asks nobody for a password.

        Raises:
            grpc.RpcError: logging in failed; the caller's own request has not been sent.
        """
        known = self._metadata
        if known is not None:
            return known
        end_ns = self._now_ns() + round(timeout_s * NANOSECONDS_PER_S)
        if not self._lock.acquire(timeout=timeout_s):
            raise LoginBusy
        try:
            known = self._metadata
            if known is None:
                known = self._metadata = self._log_in(channel, max(0, end_ns - self._now_ns()) / NANOSECONDS_PER_S)
            return known
        finally:
            self._lock.release()

    def reject(self, metadata: Metadata) -> None:
        """Forget a token that was refused, unless another call has replaced it already."""
        # Without the lock, which may be held as long as a call takes. A token that comes in between the two lines is
        # lost, and costs one more login.
        if self._metadata == metadata:
            self._metadata = None

    def _log_in(self, channel: Any, timeout_s: float) -> Metadata:
        request = etcdrpc.AuthenticateRequest(name=self._login.username, password=self._login.password)
        try:
            answer = etcdrpc.AuthStub(channel).Authenticate(request, timeout=timeout_s, metadata=REQUIRE_LEADER)
        except grpc.RpcError as error:
            if failures.says_auth_is_off(error):
                return ()
            raise
        return ((TOKEN_FIELD, str(answer.token)),)


def channel_credentials(files: TlsFiles) -> Any:
    """Read the files as they are now and make gRPC's credentials of them.

    Raises:
        TlsFilesUnusable: a file is missing, is no PEM, or the key does not belong to the certificate.
    """
    client_context(files)
    return grpc.ssl_channel_credentials(
        root_certificates=_authorities(files.ca_file),
        private_key=_read("key_file", files.key_file) if files.key_file else None,
        certificate_chain=_read("cert_file", files.cert_file) if files.cert_file else None,
    )


def channel_options(files: TlsFiles) -> dict[str, str]:
    """Options of a channel that go with the credentials."""
    return {"grpc.ssl_target_name_override": files.server_name} if files.server_name else {}


def fingerprint(files: TlsFiles) -> tuple[tuple[int, int, int] | None, ...]:
    """Changes whenever a file has been written or replaced. It reads no file."""
    return tuple(_stamp(path) for path in (files.ca_file, files.cert_file, files.key_file))


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _authorities(ca_file: Path | None) -> bytes:
    """PEM of those whom to trust: of the file, or of this system. gRPC's own list would be neither."""
    return _system_authorities() if ca_file is None else _read("ca_file", ca_file)


def _system_authorities() -> bytes:
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None:
        return _read("the system's list of authorities", Path(paths.cafile))
    # A directory that is made for OpenSSL has a link NAME.0 to each certificate.
    hashed = sorted(Path(paths.capath).glob("*.0")) if paths.capath else []
    if not hashed:
        raise TlsFilesUnusable("this system names no authorities that it trusts; give ca_file")
    return b"\n".join(_read("the system's certificate", path) for path in hashed)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFilesUnusable(f"{name} {path} cannot be read ({error.strerror})") from None
