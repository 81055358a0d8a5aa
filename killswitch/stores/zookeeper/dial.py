"""Making a connection to a ZooKeeper server: budgets, TCP, TLS, and why it could not be made.

kazoo's own way trusts the system's authorities beside those of ``ca_file``, knows no ``server_name``, and cannot be
told to stop.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import ssl
from collections.abc import Callable
from typing import Any

from killswitch.stores.timing import Deadline
from killswitch.stores.urls import TlsFiles

COMMAND_CHUNK_BYTES = 8_192


Ready = Callable[[list[Any], list[Any], Deadline], bool]
"""Waits until one of the first can be read or one of the second written; false when the time has passed."""


def dial(
    address: tuple[str, int], server: str, tls: TlsFiles | None, deadline: Deadline, ready: Ready
) -> socket.socket:
    """Connect, over TLS where there are files for it; what is returned does not block.

    Args:
        address: where to.
        server: ``host:port`` as it was written; the certificate must bear this host, or ``tls.server_name``.
        tls: ``None`` for a connection in the clear.
        deadline: of all of it.
        ready: waits.

    Raises:
        OSError: not connected.
    """
    family, kind, protocol, _, where = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    plain = socket.socket(family, kind, protocol)
    try:
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BlockingIOError):
            plain.connect(where)
        _await(ready([], [plain], deadline))
        _check_connected(plain)
        return plain if tls is None else _shake_hands(plain, tls.server_name or _host(server), tls, deadline, ready)
    except BaseException:
        plain.close()
        raise


def command(server: str, word: str, tls: TlsFiles | None, deadline: Deadline) -> str:
    """What a server answers to a four-letter word.

    Raises:
        OSError: nothing, in time.
    """
    host, port = _host(server), int(server.rpartition(":")[2])
    with dial((host, port), server, tls, deadline, _select) as asking:
        asking.sendall(word.encode())
        told = b""
        while True:
            try:
                chunk = asking.recv(COMMAND_CHUNK_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                _await(_select([asking], [], deadline))
                continue
            if not chunk:
                return told.decode(errors="replace")
            told += chunk


def tls_context(tls: TlsFiles) -> ssl.SSLContext:
    """Whom to trust and who we are. Read anew for each connection, so that renewed certificates are taken up.

    Raises:
        OSError: a file cannot be read or holds no certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        context.load_verify_locations(tls.ca_file)
    if tls.cert_file is not None:
        # An encrypted key is refused: a prompt for its password would wait for ever.
        context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    return context


def reason(error: OSError) -> str:
    """Why there is no connection, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no handshake'})"
    return (error.strerror or str(error)).lower()


def _shake_hands(plain: socket.socket, name: str, tls: TlsFiles, deadline: Deadline, ready: Ready) -> ssl.SSLSocket:
    secure = tls_context(tls).wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
    try:
        while not _handshake_done(secure, deadline, ready):
            continue
    except BaseException:
        secure.close()
        raise
    return secure


def _handshake_done(secure: ssl.SSLSocket, deadline: Deadline, ready: Ready) -> bool:
    try:
        secure.do_handshake()
    except ssl.SSLWantReadError:
        _await(ready([secure], [], deadline))
        return False
    except ssl.SSLWantWriteError:
        _await(ready([], [secure], deadline))
        return False
    return True


def _select(readers: list[Any], writers: list[Any], deadline: Deadline) -> bool:
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader, selectors.EVENT_READ)
        for writer in writers:
            selector.register(writer, selectors.EVENT_WRITE)
        return bool(selector.select(deadline.remaining_s()))


def _await(ready: bool) -> None:
    if not ready:
        raise TimeoutError("no answer in time")


def _check_connected(plain: socket.socket) -> None:
    error = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def _host(server: str) -> str:
    return server.rpartition(":")[0].strip("[]")
