"""Taking a node that is gone for good out of the cluster's books: by a person, once, and into the history.

A lost node goes on counting, in the exposure and in every certificate, because nobody can know what became of it. A
person who knows may say so. What makes that safe is that the node has provably no permit left when its record goes: for
the whole time that a permit lasts nothing of it has changed in the store, neither lease, record nor report. A node that
cannot reach the store has lost its permit by then, and one that can would have shown itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from killswitch.cluster.cluster import Cluster, Committed, NotInitialised
from killswitch.cluster.records import (
    AckRecord,
    HistoryRecord,
    LiveRecord,
    NodeRecord,
    Record,
    ReportRecord,
    UnreadableRecord,
)
from killswitch.cluster.records import json_values as values_of
from killswitch.cluster.roster import read_of_node
from killswitch.core.canonical import canonical_json
from killswitch.core.flag import FORGOTTEN_MAX_BYTES, Change, Flag, FlagError
from killswitch.core.flag import forget as forget_change
from killswitch.core.permit import NANOSECONDS_PER_MS, expiry_bound_ms
from killswitch.stores.port import Conflict, Entry, OutcomeUnknown, StoreError

FAMILIES: Mapping[str, type[Record]] = {"nodes": NodeRecord, "reports": ReportRecord, "acks": AckRecord}
"""What the store keeps of a node that is not alive."""

ATTEMPTS = 10
"""How often the commit is tried again because somebody else changed the flag."""

UNREADABLE_MAX_CHARS = 2_000
"""How much of a value that cannot be read goes into the history as text."""

PARTS_LEFT_OUT = ((), ("routers",), ("routers", "holdings"))
"""What the account of a node does without, one after the other, until it fits into a history entry."""


class NotForgotten(FlagError):
    """The node must not be taken out of the books, or not yet; nothing was changed."""


class UnknownNode(NotForgotten):
    """The store knows nothing of such a node."""


class PartlyForgotten(Exception):
    """Some stores have taken the node out of their books and others have not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostNode:
    """What the store held of a node without a live agent, at one look.

    Attributes:
        node: its name.
        entries: what stands under the node's name, by family; ``None`` where there is nothing.
        looked_ns: when the look was over, on the clock of whoever looked.
        permit_ttl_ms: how long its permits last; ``None`` when no readable record tells.
        wait_ms: how long after the look no permit of the node can be left, on the clock of whoever looked. Where
            ``permit_ttl_ms`` is unknown it is that of the cluster's own timing, and proves nothing.
    """

    node: str
    entries: Mapping[str, Entry | None]
    looked_ns: int
    permit_ttl_ms: int | None
    wait_ms: float

    def account(self) -> dict[str, Any]:
        """What was known of the node, in full, as JSON values; a value that cannot be read stands as text."""
        return self._account(())

    def accounts(self) -> Iterator[dict[str, Any]]:
        """The account in full, then with less and less of it, each saying what it leaves out."""
        for left_out in PARTS_LEFT_OUT:
            yield self._account(left_out)

    def _account(self, left_out: tuple[str, ...]) -> dict[str, Any]:
        said = {family: _values(family, entry) for family, entry in self.entries.items()}
        dropped: dict[str, int] = {}
        for record in (said["reports"], said["acks"]):
            for name in left_out:
                if record is not None and name in record:
                    dropped[name] = dropped.get(name, 0) + len(canonical_json(record.pop(name)).encode())
        return {
            "node": self.node,
            "permit_ttl_ms": self.permit_ttl_ms,
            "record": said["nodes"],
            "report": said["reports"],
            "ack": said["acks"],
            **({"left_out_bytes": dropped} if dropped else {}),
        }


def look(cluster: Cluster, node: str) -> LostNode:
    """Look for what is left of a node, and refuse one that is alive or was never there.

    Raises:
        NotForgotten: its agent holds a lease.
        UnknownNode: the store knows nothing of such a node.
        StoreError: the store did not answer or refuses.
    """
    live = cluster.store.read(cluster.keys.under("live", node))
    if live is not None:
        raise NotForgotten(
            f"node {node!r} is alive: {_holder(live)} holds its lease; stop that agent and wait until the lease has "
            "run out, nothing was forgotten"
        )
    entries = {family: cluster.store.read(cluster.keys.under(family, node)) for family in FAMILIES}
    looked_ns = cluster.clock()
    if not any(entries.values()):
        raise UnknownNode(
            f"cluster {cluster.name!r} knows no node {node!r}: `killswitch nodes` shows those that it knows; nothing "
            "was forgotten"
        )
    permit_ttl_ms = _permit_ttl_ms(entries["nodes"])
    counted_ms = cluster.timing.permit_ttl_ms if permit_ttl_ms is None else permit_ttl_ms
    return LostNode(
        node=node,
        entries=entries,
        looked_ns=looked_ns,
        permit_ttl_ms=permit_ttl_ms,
        wait_ms=expiry_bound_ms(counted_ms, cluster.timing.clock_rate_ratio),
    )


def look_in_all(clusters: Sequence[Cluster], node: str) -> list[tuple[Cluster, LostNode]]:
    """Look for a node in every store of a cluster; return what each holds that knows it.

    Raises:
        NotForgotten: in one of them its agent holds a lease.
        UnknownNode: none of them knows such a node.
        NotInitialised, UnreadableRecord: one has no flag to go by.
        StoreError: one did not answer or refuses.
    """
    found: list[tuple[Cluster, LostNode]] = []
    unknown: list[UnknownNode] = []
    for cluster in clusters:
        cluster.read_flag()  # without a flag that can be read nothing is asked and nothing happens
        try:
            found.append((cluster, look(cluster, node)))
        except UnknownNode as error:
            unknown.append(error)
    if not found:
        raise unknown[0]
    return found


def forget_in_all(found: Sequence[tuple[Cluster, LostNode]], *, actor: str, reason: str) -> list[Committed]:
    """Take the node out of the books of every store that knows it, one after the other, each as :func:`forget` does.

    Raises:
        PartlyForgotten: a store failed after another had forgotten; says what to run.
        NotForgotten, Conflict, StoreError and the like: as :func:`forget`, of the first store; nothing was forgotten.
    """
    done: list[Committed] = []
    for cluster, remains in found if len(found) > 1 else ():
        # While it was waited for, in any of them: then none forgets.
        _raise_if_it_shows_itself(cluster, remains)
    for cluster, remains in found:
        try:
            done.append(forget(cluster, remains, actor=actor, reason=reason))
        except (FlagError, NotInitialised, UnreadableRecord, StoreError) as error:
            if not done:
                raise
            where = ", ".join(before.store.address for before, _ in found[: len(done)])
            again = " and ".join(command_for(after, remains.node) for after, _ in found[len(done) :])
            raise PartlyForgotten(
                f"node {remains.node!r} was forgotten in {where}, but NOT in {cluster.store.address} ({error}), and "
                f"stays in every certificate until it is: look at `killswitch nodes`, then run {again}"
            ) from error
    return done


def command_for(cluster: Cluster, node: str) -> str:
    """What to type to forget a node in one store of a cluster alone."""
    return f"`killswitch --store {cluster.store.address} --cluster {cluster.name} nodes forget {node}`"


def wait_left_ms(cluster: Cluster, remains: LostNode) -> float:
    """How long it still takes until no permit of the node can be left; 0 when that has passed."""
    return max(0.0, remains.wait_ms - (cluster.clock() - remains.looked_ns) / NANOSECONDS_PER_MS)


def forget(cluster: Cluster, remains: LostNode, *, actor: str, reason: str) -> Committed:
    """Take the node out of the books: its records go and the history entry comes in one commit.

    The freezes in force stay as they are, and the epoch grows by one. A flag that was changed meanwhile is no obstacle,
    anything of the node that was changed is. A lost reply is settled by reading the history.

    Raises:
        NotForgotten: a permit of the node may be left, or the node has shown itself since the look.
        NotInitialised, UnreadableRecord: there is no flag to go by; nothing was changed.
        Conflict: others changed the flag again and again; nothing was changed.
        OutcomeUnknown: the node may or may not be forgotten.
        StoreError: the store did not answer or refuses; nothing was forgotten.
    """
    left_ms = wait_left_ms(cluster, remains)
    if left_ms > 0:
        raise NotForgotten(
            f"node {remains.node!r} may hold a permit for another {left_ms:.0f} ms; try again then, nothing was "
            "forgotten"
        )
    keys = {family: cluster.keys.under(family, remains.node) for family in FAMILIES}
    expected: dict[str, int | None] = {cluster.keys.under("live", remains.node): None}
    for family, entry in remains.entries.items():
        expected[keys[family]] = entry.version if entry else None
    started_ns = cluster.clock()
    for _ in range(ATTEMPTS):
        stored = cluster.read_flag()
        change = _fitting_change(cluster, stored.flag, remains, actor=actor, reason=reason)
        try:
            cluster.commit_change(change, flag_version=stored.version, fence=expected, deletes=list(keys.values()))
        except Conflict:
            _raise_if_it_shows_itself(cluster, remains)
            continue
        except OutcomeUnknown as unknown:
            if not cluster.settle(change, unknown, doubt=f"node {remains.node!r} may or may not be forgotten"):
                raise
        return Committed(change.flag, changed=True, started_ns=started_ns, returned_ns=cluster.clock())
    raise Conflict(
        f"the flag of cluster {cluster.name!r} in {cluster.store.address} was changed during each of {ATTEMPTS} "
        f"attempts to forget node {remains.node!r}; nothing was forgotten, try again"
    )


def _fitting_change(cluster: Cluster, flag: Flag, remains: LostNode, *, actor: str, reason: str) -> Change:
    """Make the change with as much of what was known as a history entry holds and can be read back from one."""
    for account in remains.accounts():
        if len(canonical_json(account).encode()) > FORGOTTEN_MAX_BYTES:
            continue
        change = forget_change(flag, forgotten=account, actor=actor, at=cluster.wall_clock(), reason=reason)
        try:
            # Values nested as deep as a record may be are too deep inside another one.
            HistoryRecord.from_bytes(HistoryRecord.from_core(change.entry).to_bytes(), key="history")
        except (UnreadableRecord, ValueError):
            continue
        return change
    raise NotForgotten(
        f"what is known of node {remains.node!r} does not fit into the history even in short; nothing was forgotten"
    )


def _raise_if_it_shows_itself(cluster: Cluster, remains: LostNode) -> None:
    """Find out why a commit met something else than was expected; return when it was the flag alone."""
    again = look(cluster, remains.node)
    changed = [
        family
        for family, entry in remains.entries.items()
        if (entry.version if entry else None) != (found.version if (found := again.entries[family]) else None)
    ]
    if changed:
        raise NotForgotten(
            f"node {remains.node!r} has shown itself: its {' and '.join(changed)} changed in the store meanwhile; "
            "nothing was forgotten, look at `killswitch nodes` again"
        )


def _holder(live: Entry) -> str:
    """Who keeps a node's lease, for an error."""
    try:
        record = read_of_node(LiveRecord, live)
    except UnreadableRecord as error:
        return f"somebody ({error})"
    return f"an agent (pid {record.pid}, since {record.started_at}, gate {record.gate})"


def _permit_ttl_ms(entry: Entry | None) -> int | None:
    if entry is None:
        return None
    try:
        return read_of_node(NodeRecord, entry).permit_ttl_ms
    except UnreadableRecord:
        return None


def _values(family: str, entry: Entry | None) -> dict[str, Any] | None:
    """A stored record as JSON values, or what can be said of one that cannot be read."""
    if entry is None:
        return None
    try:
        return dict(values_of(read_of_node(FAMILIES[family], entry)))
    except UnreadableRecord as error:
        raw = entry.value or b""
        return {
            "unreadable": str(error),
            "text": raw.decode("utf-8", "replace")[:UNREADABLE_MAX_CHARS],
            "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
