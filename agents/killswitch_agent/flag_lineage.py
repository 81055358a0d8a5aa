"""What an agent concludes from what it reads: pure functions of what it knows and what the store says.

The store is never believed when it says less than was known: a flag that is missing, older, or rewritten keeps the
node frozen, and the agent tells the store what it remembers (``Cluster.reassert``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from killswitch.core.flag import Flag, Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL, Scope


class Finding(enum.Enum):
    """How a flag that was read stands to the flag that is known."""

    ADOPT = "adopt"
    """It is the known one, or a later one that grew out of it."""

    CHECK_LINEAGE = "check_lineage"
    """It is more than one epoch later: whether it grew out of the known one is told by the history only."""

    LOST = "lost"
    """There is none, but one is known: the store lost its data."""

    ABSENT = "absent"
    """There is none, and none was ever seen: the cluster is not initialised."""

    REGRESSED = "regressed"
    """It is older than the known one: the store was set back."""

    REWRITTEN = "rewritten"
    """It did not grow out of the known one: the store was set back and went on."""


STORE_LOST_DATA = "store_lost_data"
"""Trigger of the freeze that an agent puts into a store that lost or rewrote its data."""

MUST_REASSERT = frozenset({Finding.LOST, Finding.REGRESSED, Finding.REWRITTEN})
"""Findings after which the store is told what is known here."""


def judge(known: Flag | None, found: Flag | None) -> Finding:
    """Compare what the store holds with what is known.

    Args:
        known: the newest flag that this node has seen, from its journal or since it started.
        found: the flag in the store, ``None`` when there is none.
    """
    if found is None:
        return Finding.ABSENT if known is None else Finding.LOST
    if known is None:
        return Finding.ADOPT
    if _was_told(known, found):
        return Finding.ADOPT
    if found.epoch < known.epoch:
        return Finding.REGRESSED
    if found.epoch == known.epoch:
        return Finding.ADOPT if found.head == known.head else Finding.REWRITTEN
    if found.epoch == known.epoch + 1:
        return Finding.ADOPT if found.parent == known.head else Finding.REWRITTEN
    return Finding.CHECK_LINEAGE


def _was_told(known: Flag, found: Flag) -> bool:
    """True when the store holds all that is known here, and the freeze that says that it had lost it.

    Then somebody who knew the same has told it again: the flag is taken over with that freeze, and an operator decides.
    """
    held = {freeze.canonical() for freeze in found.freezes}
    return store_fault_id(known) in found.freeze_ids() and all(freeze.canonical() in held for freeze in known.freezes)


def store_fault_id(known: Flag) -> str:
    """Id of the freeze for a store that lost what is known: agents that knew the same say it once."""
    return f"store-lost-data-{known.epoch}-{known.head[:8]}"


def judge_lineage(known: Flag, stored_hash: str | None) -> Finding:
    """Decide :attr:`Finding.CHECK_LINEAGE` by the hash that the history in the store holds for the known epoch."""
    return Finding.ADOPT if stored_hash == known.head else Finding.REWRITTEN


FAULT_SENTENCES = {
    Finding.ABSENT: "the cluster is not initialised: run `killswitch init`",
    Finding.LOST: "the store has lost the flag that this node has seen",
    Finding.REGRESSED: "the store holds an older flag than this node has seen",
    Finding.REWRITTEN: "the store holds a flag that did not grow out of the one that this node has seen",
}


def store_fault_cause(finding: Finding, known: Flag, *, actor: str, at: str) -> Freeze:
    """Return the freeze that an agent puts into a store that lost or rewrote its data."""
    return Freeze(
        id=store_fault_id(known),
        scope=GLOBAL,
        mode=Mode.FROZEN,
        trigger=STORE_LOST_DATA,
        reason=f"{FAULT_SENTENCES[finding]} (epoch {known.epoch}); look at the store before you release",
        actor=actor,
        at=at,
        metadata={"known_epoch": known.epoch, "known_head": known.head},
    )


def touching(freezes: Iterable[Freeze], node: str) -> tuple[Freeze, ...]:
    """Return the freezes that can cover an order of this node."""
    return tuple(freeze for freeze in freezes if freeze.scope.covers({"node": node}))


@dataclass(frozen=True, slots=True)
class FreezeScopes:
    """Turns the setting ``agent.freeze_scope`` into a scope."""

    setting: str
    node: str

    def scope_for(self, symbol: str | None) -> Scope:
        """Return what a monitor's freeze covers; a freeze by symbol without a symbol covers everything."""
        if self.setting == "node":
            return Scope.parse(f"node:{self.node}")
        if self.setting == "symbol" and symbol:
            return Scope.of_symbol(symbol)
        return GLOBAL
