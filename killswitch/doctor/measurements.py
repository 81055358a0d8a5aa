"""What was measured, as plain values: the only thing that passes from the probes to the findings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from killswitch.core.permit import Timing


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """Times of several calls of one kind, in milliseconds.

    Attributes:
        count: how many succeeded.
        p50_ms: their median.
        max_ms: the slowest.
        error: what ended the measurement early, empty when nothing did.
    """

    count: int
    p50_ms: float
    max_ms: float
    error: str = ""

    @classmethod
    def of(cls, times_ms: Sequence[float], error: str = "") -> RoundTrips:
        """Sum up single times; all figures are 0 when no call succeeded."""
        if not times_ms:
            return cls(0, 0.0, 0.0, error)
        return cls(len(times_ms), statistics.median(times_ms), max(times_ms), error)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing that was tried: how long it took, or the sentence that says why it failed."""

    took_ms: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSeen:
    """A store as it answered.

    Attributes:
        address: where it is, without credentials.
        answers: the first read came back, or was refused; False when there was no answer in time.
        error: why the first read failed, empty when it did not.
        version: version of the server, empty where it does not tell.
        settings: settings of the server as it names them; empty where it does not tell.
        not_told: why the server told no more of itself, empty when nothing went wrong.
        guarantees: the declared facts, by name; empty when the store could not even be opened.
        note: the note that goes with them.
        reads: linearizable reads of the flag.
        writes: commits to a key of the doctor's own.
        watch: from the start of a commit until the watch showed it.
        lease: granting a lease.
        left_behind: why the doctor's own key could not be deleted again, empty when it is gone.
    """

    address: str
    answers: bool
    error: str = ""
    version: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    not_told: str = ""
    guarantees: Mapping[str, bool | int] = field(default_factory=dict)
    note: str = ""
    reads: RoundTrips | None = None
    writes: RoundTrips | None = None
    watch: Attempt | None = None
    lease: Attempt | None = None
    left_behind: str = ""


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A node in the cluster's books.

    Attributes:
        node: its name.
        live: its agent keeps its lease alive.
        permit_ttl_ms: how long its permits last, ``None`` when its record cannot be read.
    """

    node: str
    live: bool
    permit_ttl_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSeen:
    """The cluster as its store holds it; each ``..._error`` is empty when that part could be read.

    Attributes:
        cluster: its name.
        flag_error: why there is no flag to go by.
        epoch: of the flag, ``None`` without one.
        mode: strictest mode anywhere, empty without a flag.
        freezes: number of causes in force.
        history_error: why the history could not be read.
        history_faults: what is wrong with it; empty when it verifies.
        history_entries: how many it has, ``None`` when it could not be read.
        books_error: why the nodes could not be read.
        nodes: every registered node.
        unreadable_reports: nodes whose report cannot be read.
        leader_error: why it is not known who leads.
        leader: who leads, empty when nobody does.
        term: of the leader, ``None`` without one.
    """

    cluster: str
    flag_error: str = ""
    epoch: int | None = None
    mode: str = ""
    freezes: int = 0
    history_error: str = ""
    history_faults: tuple[str, ...] = ()
    history_entries: int | None = None
    books_error: str = ""
    nodes: tuple[NodeSeen, ...] = ()
    unreadable_reports: tuple[str, ...] = ()
    leader_error: str = ""
    leader: str = ""
    term: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSeen:
    """A gate page of this machine.

    Attributes:
        path: where.
        asked_for: somebody named this page, so that it ought to be there.
        present: there is a file.
        error: why it cannot be used, empty when it can. A page of another boot is one of these.
        cluster: whose gate it says that it is.
        node: of which node.
        epoch: of the flag on it.
        mode: strictest mode of its causes; the permit is told apart.
        permit_ms_left: how long the permit lasts; negative: it ran out so long ago; ``None``: there never was one.
        heartbeat_ms_ago: since the writer wrote last.
        writer_pid: who writes it, in the writer's own PID namespace.
        writer_alive: a process of that number exists here.
    """

    path: str
    asked_for: bool
    present: bool
    error: str = ""
    cluster: str = ""
    node: str = ""
    epoch: int = 0
    mode: str = ""
    permit_ms_left: float | None = None
    heartbeat_ms_ago: float = 0.0
    writer_pid: int = 0
    writer_alive: bool = False


@dataclass(frozen=True, slots=True)
class DirectorySeen:
    """A directory that an agent needs, or the nearest one above it that exists.

    Attributes:
        path: the directory that is wanted.
        exists: it is there.
        writable: this user may write there, or make it where it is missing.
        read_only: its file system takes no writes from anybody.
        free_bytes: space for users without privileges; ``None`` where it cannot be told.
    """

    path: str
    exists: bool
    writable: bool
    read_only: bool
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class InstallationSeen:
    """What this program was installed by, and what else claims its names.

    Attributes:
        distribution: name and version, empty when it runs from a folder that nothing installed.
        path: the folder of the package ``killswitch`` that runs.
        others: for each other distribution that owns a file or an import root of ours, its name and version, and one
            of those files.
    """

    distribution: str
    path: str
    others: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSeen:
    """This machine.

    Attributes:
        clock_name: the clock on which deadlines are kept.
        clock_note: what is wrong with it, empty when nothing is.
        clocksource: what the kernel reads the time from, empty where it does not tell.
        stepped_ms: how far the wall clock moved against the clock of deadlines while the doctor was at work.
        watched_ms: for how long that was.
        time_synchronised: the kernel is told the right time (NTP), ``None`` where it does not tell.
        gate: the gate page.
        shared_memory: the directory of the gate page.
        journal: the directory of the agent's journal.
        installation: what this program was installed by.
    """

    clock_name: str
    clock_note: str
    clocksource: str
    stepped_ms: float
    watched_ms: float
    time_synchronised: bool | None
    gate: GateSeen
    shared_memory: DirectorySeen
    journal: DirectorySeen
    installation: InstallationSeen


@dataclass(frozen=True, slots=True)
class StoreExamined:
    """One store and the cluster in it; ``cluster`` is ``None`` when the store did not answer."""

    store: StoreSeen
    cluster: ClusterSeen | None


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything that was measured, and the settings that it is held against.

    Attributes:
        timing: of the settings, or what stands in for one that cannot be used.
        cluster: the name.
        stores: what was measured at each.
        machine: what was measured here.
        settings_faults: what is wrong with the settings, as sentences.
    """

    timing: Timing
    cluster: str
    stores: tuple[StoreExamined, ...]
    machine: MachineSeen
    settings_faults: tuple[str, ...] = ()
