"""The venue's own record is the judge: which orders arrived when, on the clock that all containers share."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable, Sequence

from killswitch.clock import now_ns
from killswitch.simulation.venue_client import VenueOperator
from tests.support.waiting import wait_until

NS_PER_S = 1_000_000_000
TRADES_WITHIN_S = 20.0


class Judge:
    """Asks the venue. Says nothing that a router said of itself."""

    def __init__(self, host: str, port: int) -> None:
        self._venue = VenueOperator(host, port)
        self._venue.start()

    def close(self) -> None:
        """Close the connection."""
        self._venue.close()

    def accepted(self, routers: Sequence[str], *, since_ns: int, until_ns: int | None = None) -> dict[str, int]:
        """Orders of each router that arrived in a window and were accepted."""
        owners = self._venue.summary(since_ns=since_ns, until_ns=until_ns)["owners"]
        return {router: int(owners.get(router, {}).get("accepted", 0)) for router in routers}

    def arrived(self, *, since_ns: int) -> int:
        """Orders of anybody that arrived, accepted or not."""
        return int(self._venue.summary(since_ns=since_ns)["placed"])

    def last_accepted_ns(self, routers: Sequence[str]) -> int:
        """When the newest order of any of them arrived; 0 when none ever did."""
        owners = self._venue.summary()["owners"]
        return max((int(owners.get(router, {}).get("last_accepted_at_ns") or 0) for router in routers), default=0)

    def now_ns(self) -> int:
        """The venue's own clock."""
        return int(self._venue.summary()["at_ns"])

    def longest_silence_ms(self, routers: Sequence[str], *, since_ns: int, slice_ms: int = 100) -> float:
        """Longest run of slices of time, from ``since_ns`` until now, in which it accepted nothing of any of them."""
        longest = current = 0
        slice_ns = slice_ms * 1_000_000
        for begin_ns in range(since_ns, self.now_ns() - slice_ns, slice_ns):
            heard = any(self.accepted(routers, since_ns=begin_ns, until_ns=begin_ns + slice_ns).values())
            current = 0 if heard else current + 1
            longest = max(longest, current)
        return float(longest * slice_ms)

    def working(self, routers: Sequence[str]) -> int:
        """Orders that may still be filled."""
        owners = self._venue.summary()["owners"]
        return sum(int(owners.get(router, {}).get("open", 0)) for router in routers)

    def wait_until_trading(self, routers: Iterable[str], *, within_s: float = TRADES_WITHIN_S) -> None:
        """Wait until each of them has had an order accepted from now on."""
        names, since_ns = tuple(routers), now_ns()
        wait_until(
            lambda: all(self.accepted(names, since_ns=since_ns).values()), within_s=within_s,
            what=f"an order of each of {', '.join(names)}",
        )  # fmt: skip


def boot_ns(at: str) -> int:
    """An RFC 3339 time of this machine's wall clock on the clock of deadlines."""
    wall_ns = int(dt.datetime.fromisoformat(at).timestamp() * NS_PER_S)
    return wall_ns - (time.clock_gettime_ns(time.CLOCK_REALTIME) - now_ns())
