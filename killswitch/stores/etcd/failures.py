"""What a failed call to etcd says: whether it can have happened, whether trying again helps, and what a person may do.

Nothing here connects. The words are gRPC's and etcd's own, of etcd 3.4 and 3.5. Should one of them change, a write
reports ``OutcomeUnknown`` where ``StoreUnavailable`` would have been true: the safe side.
"""

from __future__ import annotations

from typing import Any

import grpc

Code = grpc.StatusCode

SHOWN_DETAILS_MAX_CHARS = 200

NO_LEADER_DETAILS = "etcdserver: no leader"
# gRPC's own words for "there was no connection to send it on".
NEVER_SENT_DETAILS = ("failed to connect to all addresses", "DNS resolution failed")
# Answers of etcd from before it proposes anything.
REFUSED_UNDONE_DETAILS = (NO_LEADER_DETAILS, "etcdserver: too many requests")
TOO_LARGE_DETAILS = "larger than max"
NO_SPACE_DETAILS = "etcdserver: mvcc: database space exceeded"
AUTH_OFF_DETAILS = "etcdserver: authentication is not enabled"
WRONG_PASSWORD_DETAILS = "etcdserver: authentication failed"  # noqa: S105 - etcd's sentence, no password
NO_USER_DETAILS = "etcdserver: user name is empty"
PERMISSION_DENIED_DETAILS = "etcdserver: permission denied"

# etcd checks all of these before it applies anything, so a write that was answered so did not happen.
INVALID_TOKEN_DETAILS = "etcdserver: invalid auth token"  # noqa: S105 - etcd's sentence, no token
STALE_TOKEN_DETAILS = (
    INVALID_TOKEN_DETAILS,
    # Users or roles were changed after the token was given out; the second is how etcd 3.5.1 says it.
    "etcdserver: revision of auth store is old",
    "auth: revision in header is old",
    # Passwords were turned on after we had been told that there are none.
    NO_USER_DETAILS,
)

FORBIDDEN_CODES = frozenset(
    {
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        # etcd: too large, too many operations, no user name where one is needed. It checks these before it acts.
        Code.INVALID_ARGUMENT,
        # Something answers there that is not etcd.
        Code.UNIMPLEMENTED,
    }
)

# TLS 1.2 names the alert; TLS 1.3 sends it after the handshake, where gRPC does not look at it.
CERTIFICATE_REFUSED_DETAILS = ("ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE", "ALERT_UNKNOWN_CA", "Unwrap failed")
CERTIFICATE_REFUSED_HINT = "it refuses our certificate, or wants one: see cert_file and key_file; it is not down"
# What gRPC says of a connection that could not be made, and what a person may make of it; the first that fits is said.
CONNECTION_HINTS = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not from an authority in ca_file, or has run out; it is not down",
    ),
    (
        "Hostname Verification Check failed",
        "its certificate does not bear the name that was connected to; name the right one with server_name",
    ),
    *((said, CERTIFICATE_REFUSED_HINT) for said in CERTIFICATE_REFUSED_DETAILS),
    ("Handshake read failed", "it ended the TLS handshake; does it speak TLS on this port?"),
    ("Tls handshake failed", "it and we agree on no TLS connection; it is not down"),
    ("Connection refused", "nobody listens there"),
    ("DNS resolution failed", "its name is not known here"),
)
SOCKET_CLOSED_HINTS = {
    True: "it ended the connection; it may refuse our certificate, or be about to restart",
    False: "it ended the connection; it may want TLS (etcds://), or be about to restart",
}
ANSWER_HINTS = (
    (WRONG_PASSWORD_DETAILS, "the user name or the password is wrong"),
    (NO_USER_DETAILS, "it wants a user: give username and password_file, or a client certificate"),
    (PERMISSION_DENIED_DETAILS, "grant the user a role for these keys, or connect as another user"),
    (INVALID_TOKEN_DETAILS, "log in with username and password_file"),
)


def code_of(error: grpc.RpcError) -> Any:
    """gRPC's status code, ``None`` for a failure that has none."""
    # Errors of calls are grpc.Call objects, too; the stubs of the package do not say so.
    return error.code() if isinstance(error, grpc.Call) else None


def details_of(error: grpc.RpcError) -> str:
    """The words of the server or of gRPC."""
    return str(error.details() or "") if isinstance(error, grpc.Call) else str(error)


def never_sent(error: grpc.RpcError) -> bool:
    """Whether there was no connection to send the request on."""
    return code_of(error) == Code.UNAVAILABLE and details_of(error).startswith(NEVER_SENT_DETAILS)


def refused_undone(error: grpc.RpcError) -> bool:
    """Whether the server answered that it did nothing, and another one might."""
    return details_of(error) in REFUSED_UNDONE_DETAILS


def refuses_token(error: grpc.RpcError) -> bool:
    """Whether the server did nothing because it wants a newer token."""
    return details_of(error) in STALE_TOKEN_DETAILS


def may_refuse_token(cancel_reason: str) -> bool:
    """Whether a watch may have been cancelled for want of a newer token; etcd 3.5.1 says "permission denied" then."""
    return any(details in cancel_reason for details in (*STALE_TOKEN_DETAILS, PERMISSION_DENIED_DETAILS))


def is_forbidden(error: grpc.RpcError) -> bool:
    """Whether the same request will be refused again."""
    code = code_of(error)
    return code in FORBIDDEN_CODES or (code == Code.RESOURCE_EXHAUSTED and TOO_LARGE_DETAILS in details_of(error))


def is_permission_denied(error: grpc.RpcError) -> bool:
    """Whether the server knows who asks, and does not let them."""
    return bool(code_of(error) == Code.PERMISSION_DENIED)


def is_not_found(error: grpc.RpcError) -> bool:
    """Whether the server answered that there is no such thing."""
    return bool(code_of(error) == Code.NOT_FOUND)


def is_out_of_space(error: grpc.RpcError) -> bool:
    """Whether the database is full. The write that fills it is applied and answered so, all later ones are not."""
    return details_of(error) == NO_SPACE_DETAILS


def says_auth_is_off(error: grpc.RpcError) -> bool:
    """Whether the server asks nobody for a password."""
    return details_of(error) == AUTH_OFF_DETAILS


def refuses_nobody(error: grpc.RpcError) -> bool:
    """Whether the server, which was given no name, wants one."""
    return details_of(error).startswith((WRONG_PASSWORD_DETAILS, NO_USER_DETAILS))


def shown(error: grpc.RpcError, *, tls: bool = False) -> str:
    """The failure for people: what a person may make of it, then gRPC's or etcd's own words.

    Args:
        error: of a call.
        tls: whether the connection was to be one over TLS.
    """
    code = code_of(error)
    name = code.name.lower().replace("_", " ") if code is not None else "failed"
    details = " ".join(details_of(error).split())
    own_words = f"{name} ({_middle_cut(details)})" if details else name
    hint = _hint(details, tls=tls)
    return f"{hint}: {own_words}" if hint else own_words


def _hint(details: str, *, tls: bool) -> str:
    if details.startswith(NEVER_SENT_DETAILS):
        found = next((hint for said, hint in CONNECTION_HINTS if said in details), "")
        return found or (SOCKET_CLOSED_HINTS[tls] if "Socket closed" in details else "")
    return next((hint for said, hint in ANSWER_HINTS if details.startswith(said)), "")


def _middle_cut(details: str) -> str:
    """At most so many characters of it, and of a long one both ends: gRPC says at the end what TLS did not like."""
    if len(details) <= SHOWN_DETAILS_MAX_CHARS:
        return details
    half = SHOWN_DETAILS_MAX_CHARS // 2
    return f"{details[:half]} ... {details[-half:]}"
