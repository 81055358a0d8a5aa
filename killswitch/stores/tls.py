"""TLS for connections to stores: the PEM files of a URL become a context, or a sentence that says what is wrong."""

from __future__ import annotations

import ssl

from killswitch.stores.urls import TlsFiles


class TlsFilesUnusable(ValueError):
    """A PEM file cannot be read or used; the sentence says which, and why."""


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Whom to trust and who we are, as the files say now.

    Raises:
        TlsFilesUnusable: a file is missing, is no PEM, or the key is encrypted or of another certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if files.ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            context.load_verify_locations(files.ca_file)
    except ssl.SSLError as error:
        raise TlsFilesUnusable(
            f"ca_file {files.ca_file} cannot be used ({_reason(error)}); it must hold certificates of authorities in "
            "PEM"
        ) from None
    except OSError as error:
        raise TlsFilesUnusable(f"ca_file {files.ca_file} cannot be read ({error.strerror})") from None
    if files.cert_file is None or files.key_file is None:
        return context
    try:
        # Without a password the library would ask the terminal for that of an encrypted key.
        context.load_cert_chain(files.cert_file, files.key_file, password="")
    except ssl.SSLError as error:
        raise TlsFilesUnusable(
            f"cert_file {files.cert_file} and key_file {files.key_file} cannot be used ({_reason(error)}); they must "
            "be PEM and belong together, and the key must not be encrypted"
        ) from None
    except OSError as error:
        raise TlsFilesUnusable(
            f"cert_file {files.cert_file} or key_file {files.key_file} cannot be read ({error.strerror})"
        ) from None
    return context


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "no PEM").lower().replace("_", " ")
