"""Time: how long a permit lasts, and the inequalities without which the promises would not hold.

A permit is a node's right to trade until a deadline on its own clock. It is renewed only by a linearizable read of the
flag, and it counts from *before* that read was sent: whatever was committed after the read began can be unknown to the
node for at most ``permit_ttl_ms``. This tolerates any offset between clocks, and a difference in their *rate* up to
``clock_rate_ratio``: a freeze that was committed is known to have stopped everybody ``permit_ttl_ms * ratio`` later,
measured on the clock of whoever waits.
"""

from __future__ import annotations

from dataclasses import dataclass

NANOSECONDS_PER_MS = 1_000_000
RENEWALS_PER_PERMIT = 3
MAX_CLOCK_RATE_RATIO = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Every duration that the promises are made of, in milliseconds.

    Attributes:
        request_timeout_ms: time of one call to the store.
        renew_every_ms: how often the permit is renewed.
        permit_ttl_ms: how long a permit lasts from before its read was sent.
        lease_ttl_ms: how long the store keeps the node's or leader's key after the last keep-alive.
        leader_deadline_ms: how long a leader acts after the start of its last successful keep-alive.
        backoff_cap_ms: longest pause between two attempts to reconnect.
        clock_rate_ratio: how much faster one node's clock may run than another's, 1.05 for five per cent.
    """

    request_timeout_ms: int = 400
    renew_every_ms: int = 500
    permit_ttl_ms: int = 2_000
    lease_ttl_ms: int = 6_000
    leader_deadline_ms: int = 4_000
    backoff_cap_ms: int = 1_000
    clock_rate_ratio: float = 1.05


def timing_faults(timing: Timing) -> list[str]:
    """Return one sentence for each inequality that does not hold; an empty list when the timing is sound."""
    faults: list[str] = []
    for name in timing.__dataclass_fields__:
        if name.endswith("_ms") and getattr(timing, name) <= 0:
            faults.append(f"{name} must be greater than 0, and it is {getattr(timing, name)}")
    if not 1.0 <= timing.clock_rate_ratio <= MAX_CLOCK_RATE_RATIO:
        faults.append(
            f"clock_rate_ratio must be between 1.0 and {MAX_CLOCK_RATE_RATIO}, and it is {timing.clock_rate_ratio}"
        )
    ordered = (
        ("request_timeout_ms", timing.request_timeout_ms, "<", "renew_every_ms", timing.renew_every_ms,
         "a hung call would make the next renewal late"),
        (f"{RENEWALS_PER_PERMIT} * renew_every_ms", RENEWALS_PER_PERMIT * timing.renew_every_ms, "<=", "permit_ttl_ms",
         timing.permit_ttl_ms, "one lost renewal must not stop a healthy node"),
        ("permit_ttl_ms * clock_rate_ratio", timing.permit_ttl_ms * timing.clock_rate_ratio, "<", "lease_ttl_ms",
         timing.lease_ttl_ms, "a node must have stopped before it counts as lost"),
        ("leader_deadline_ms * clock_rate_ratio", timing.leader_deadline_ms * timing.clock_rate_ratio, "<",
         "lease_ttl_ms", timing.lease_ttl_ms, "a leader must have stopped acting before another can start"),
        ("2 * renew_every_ms", 2 * timing.renew_every_ms, "<=", "leader_deadline_ms", timing.leader_deadline_ms,
         "one lost keep-alive must not end a healthy leader's term"),
        ("backoff_cap_ms", timing.backoff_cap_ms, "<", "permit_ttl_ms", timing.permit_ttl_ms,
         "a reconnect must be tried before the permit runs out"),
    )  # fmt: skip
    for left, left_ms, relation, right, right_ms, why in ordered:
        holds = left_ms < right_ms if relation == "<" else left_ms <= right_ms
        if not holds:
            faults.append(f"{left} ({left_ms:g}) must be {relation} {right} ({right_ms:g}): {why}")
    return faults


def permit_deadline_ns(read_sent_ns: int, timing: Timing) -> int:
    """Deadline of the permit that a read gives, on the clock on which ``read_sent_ns`` was taken before sending."""
    return read_sent_ns + timing.permit_ttl_ms * NANOSECONDS_PER_MS


def expiry_bound_ms(permit_ttl_ms: int, clock_rate_ratio: float) -> float:
    """Time after a commit, on the waiter's own clock, by which every permit that did not know of it has run out.

    A read that began after the commit returned sees it, so a permit without it began before; it lasts
    ``permit_ttl_ms`` on its node's clock, and that is at most this much on any other tolerated clock.
    """
    return permit_ttl_ms * clock_rate_ratio


@dataclass(frozen=True, slots=True)
class WorstCase:
    """The bounds that follow from a timing, in milliseconds.

    Attributes:
        reachable_ms: a node that reaches the store has closed its gate this long after a freeze, even if every watch
            event were lost: one renewal interval and one call.
        unreachable_ms: any other node has stopped by itself this long after a freeze.
        failover_ms: a standby coordinator leads this long after the leader died, with one retry interval and the time
            by which the store may keep the leader's lease too long.
    """

    reachable_ms: float
    unreachable_ms: float
    failover_ms: float


def worst_case(timing: Timing, *, lease_slack_ms: float = 0.0) -> WorstCase:
    """Derive the bounds that ``killswitch config check`` prints.

    Args:
        timing: of every process.
        lease_slack_ms: how much longer than its time to live the store may keep a lease, on anybody's clock.
    """
    lost_ms = (timing.lease_ttl_ms + timing.renew_every_ms + timing.request_timeout_ms) * timing.clock_rate_ratio
    return WorstCase(
        reachable_ms=(timing.renew_every_ms + timing.request_timeout_ms) * timing.clock_rate_ratio,
        unreachable_ms=expiry_bound_ms(timing.permit_ttl_ms, timing.clock_rate_ratio),
        failover_ms=lost_ms + lease_slack_ms,
    )
