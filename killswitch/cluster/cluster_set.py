"""One cluster kept in several stores at once: a freeze in any of them freezes, a release must be in all.

Each store has a flag, a history and members of its own, and no store knows of the others. What joins them is the rule
by which gates open: a node needs a permit from every store, and none may hold a freeze. So a freeze counts as soon as
*one* store has it, and a release only when it is in *each*; a store that is down opens nothing. Why it is not a store
behind the port: ``docs/decisions/0017``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from killswitch.cluster.cluster import AlreadyInitialised, Cluster, Committed, FreezeNotCommitted, NotInitialised
from killswitch.cluster.records import UnreadableRecord
from killswitch.core.flag import Flag, FlagError, Freeze, StaleEpoch, UnknownFreeze
from killswitch.core.permit import NANOSECONDS_PER_MS
from killswitch.stores.port import OutcomeUnknown, StoreError

R = TypeVar("R")

EXPECTED_FAULTS = (StoreError, FreezeNotCommitted, NotInitialised, UnreadableRecord, FlagError, AlreadyInitialised)
"""What a store can answer that is no bug; anything else is raised at once."""


PATIENCE_CALLS = 2
"""How many calls' time a store that does not answer is still given once another has taken a freeze."""


class PartlyReleased(Exception):
    """Some stores have the release and others do not: every gate stays closed until it is in all of them."""


@dataclass(frozen=True, slots=True)
class SetCommitted:
    """A freeze in at least one store.

    Attributes:
        commits: by the place of the store in the set; only the stores that took it.
        failures: what each of the others said.
    """

    commits: Mapping[int, Committed]
    failures: Mapping[int, Exception]


class ClusterSet:
    """The same cluster in each of its stores, in the order in which they were given.

    Args:
        clusters: at least one; all of one name.
    """

    def __init__(self, clusters: Sequence[Cluster]) -> None:
        if not clusters:
            raise ValueError("a cluster needs at least one store")
        self.clusters = tuple(clusters)

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.clusters[0].name

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where each store is."""
        return tuple(cluster.store.address for cluster in self.clusters)

    def initialise(self, *, actor: str, reason: str) -> list[Flag | None]:
        """Write the first flag where there is none; ``None`` stands for a store that had one.

        Raises:
            AlreadyInitialised: every store had a flag.
            StoreError: a store did not answer or refuses; the others may be initialised. Run it again.
        """
        flags: list[Flag | None] = []
        faults: list[AlreadyInitialised] = []
        for cluster in self.clusters:
            try:
                flags.append(cluster.initialise(actor=actor, reason=reason))
            except AlreadyInitialised as error:
                flags.append(None)
                faults.append(error)
        if len(faults) == len(self.clusters):
            raise faults[0]
        return flags

    def freeze(self, freeze: Freeze, *, timeout_ms: int) -> SetCommitted:
        """Add one cause in every store at once; it is in force as soon as one has it.

        A store that does not answer is left behind a moment after another has taken it: the proof should not wait.

        Raises:
            FreezeNotCommitted: no store has it; says whether one may.
            NotInitialised, UnreadableRecord, StoreError: what the first store said, when none was tried in vain.
        """
        taken_ns: list[int] = []

        def is_left_behind() -> bool:
            clock, timing = self.clusters[0].clock, self.clusters[0].timing
            patience_ns = PATIENCE_CALLS * timing.request_timeout_ms * NANOSECONDS_PER_MS
            return bool(taken_ns) and clock() - taken_ns[0] > patience_ns

        def freeze_in(cluster: Cluster) -> Committed:
            done = cluster.freeze(freeze, timeout_ms=timeout_ms, give_up=is_left_behind)
            taken_ns.append(cluster.clock())
            return done

        answers = self._at_once(freeze_in)
        commits = {number: answer for number, answer in answers.items() if isinstance(answer, Committed)}
        failures = {number: answer for number, answer in answers.items() if isinstance(answer, Exception)}
        if commits:
            return SetCommitted(commits, failures)
        in_vain = [error for error in failures.values() if isinstance(error, FreezeNotCommitted)]
        if not in_vain or len(failures) == 1:
            raise next(iter(failures.values()))
        raise FreezeNotCommitted(
            "; ".join(str(error) for error in failures.values()),
            may_have_happened=any(error.may_have_happened for error in in_vain),
        )

    def read_flags(self) -> list[Flag]:
        """The flag of each store.

        Raises:
            NotInitialised, UnreadableRecord, StoreError: of the first store whose flag cannot be had.
        """
        return [cluster.read_flag().flag for cluster in self.clusters]

    def release(
        self, flags: Sequence[Flag], *, epochs: Sequence[int], ids: Sequence[str], actor: str, reason: str
    ) -> list[Committed | None]:
        """Lift the named causes in every store that holds them; ``None`` for a store that holds none.

        Everything is checked against all stores before anything is written.

        Args:
            flags: what :meth:`read_flags` returned.
            epochs: the epoch of each store's flag, as the operator saw it.
            ids: causes; each must be in at least one store.
            actor: who releases.
            reason: why.

        Raises:
            StaleEpoch, UnknownFreeze: nothing was released.
            PartlyReleased: a store failed after another had taken the release; nothing opens before both have it.
            OutcomeUnknown: the first store did not say whether it took the release.
            StoreError: the first store failed, and nothing was released.
        """
        for flag, epoch in zip(flags, epochs, strict=True):
            if flag.epoch != epoch:
                raise StaleEpoch(epoch, flag.epoch)
        if not ids:
            raise UnknownFreeze("a release must name at least one freeze that is in force; none was named")
        unknown = sorted(set(ids) - frozenset().union(*(flag.freeze_ids() for flag in flags)))
        if unknown:
            raise UnknownFreeze(f"not in force in any store: {', '.join(unknown)}; nothing was released")
        released: list[Committed | None] = []
        for cluster, flag in zip(self.clusters, flags, strict=True):
            held = [freeze_id for freeze_id in ids if freeze_id in flag.freeze_ids()]
            if not held and len(self.clusters) > 1:
                released.append(None)
                continue
            try:
                released.append(cluster.release(epoch=flag.epoch, ids=held, actor=actor, reason=reason))
            except EXPECTED_FAULTS as error:
                done = [a for a, c in zip(self.addresses, released, strict=False) if c is not None]
                if not done:
                    raise
                word = "may or may not be released" if isinstance(error, OutcomeUnknown) else "NOT"
                raise PartlyReleased(
                    f"released in {', '.join(done)}, but {word} in {cluster.store.address} ({error}); every gate stays "
                    "closed until it is: look at `killswitch status` and release again"
                ) from error
        return released

    def _at_once(self, work: Callable[[Cluster], R]) -> dict[int, R | Exception]:
        """Do the same at every store at once, so that one that hangs delays no other; faults are answers."""

        def guarded(cluster: Cluster) -> R | Exception:
            try:
                return work(cluster)
            except EXPECTED_FAULTS as error:
                return error

        if len(self.clusters) == 1:
            return {0: guarded(self.clusters[0])}
        with ThreadPoolExecutor(len(self.clusters), thread_name_prefix="store") as pool:
            return dict(enumerate(pool.map(guarded, self.clusters)))
