"""Who we are to etcd: a user and a password become a token, which goes with every call.

Tokens run out (after 5 minutes without use by default), are forgotten by a server that restarts, and go stale when
somebody changes users or roles. All of that shows as a refused call, so a token is kept until one is refused. A
token from one member is good at all of them: etcd gives out simple tokens by consensus, and signed ones need none.
"""

from __future__ import annotations

import threading
from typing import Any

import grpc
from pyetcd import etcdrpc

from killswitch import clock
from killswitch.stores.etcd import failures
from killswitch.stores.timing import NANOSECONDS_PER_S
from killswitch.stores.urls import Login

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
