"""TLS for connections to etcd: the files of a URL become credentials of gRPC.

gRPC takes bytes and complains about bad ones on stderr, once per connection. So the standard library looks at the files
first: its errors can be told to a person.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc

from killswitch.stores.tls import TlsFilesUnusable, client_context
from killswitch.stores.urls import TlsFiles


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
