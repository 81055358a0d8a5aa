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
from killswitch.stores.tls import TlsFilesUnusable, client_context
from killswitch.stores.urls import TlsFiles, host_and_port

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
        if tls is None:
            return plain
        return _shake_hands(plain, tls.server_name or host_and_port(server)[0], tls, deadline, ready)
    except BaseException:
        plain.close()
        raise


def command(server: str, word: str, tls: TlsFiles | None, deadline: Deadline) -> str:
    """What a server answers to a four-letter word.

    Raises:
        OSError: nothing, in time.
    """
    with dial(host_and_port(server), server, tls, deadline, _select) as asking:
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


def reason(error: OSError) -> str:
    """Why there is no connection, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no handshake'})"
    # What we say ourselves may name a file, which is another one in small letters.
    return error.strerror.lower() if error.strerror else str(error)


def _shake_hands(plain: socket.socket, name: str, tls: TlsFiles, deadline: Deadline, ready: Ready) -> ssl.SSLSocket:
    try:
        # Read anew for each connection, so that renewed certificates are taken up.
        context = client_context(tls)
    except TlsFilesUnusable as error:
        raise OSError(str(error)) from None
    secure = context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
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
