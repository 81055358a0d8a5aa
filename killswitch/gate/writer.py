"""The agent's side of the gate: one writer per page, which closes first and opens last.

The page outlives its writer on purpose. A writer that is killed leaves a permit that runs out by itself; one that
starts takes the same file over in place, so that routers that have it mapped go on without noticing.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final

from killswitch.clock import CLOCK_ID, NowNs, now_ns
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL
from killswitch.gate.layout import (
    BOOT_ID_BYTES,
    HEADER_BYTES,
    MAGIC,
    MAX_ROWS,
    MAX_WORD,
    OFFSET,
    OPEN_UNTIL_OFFSET,
    PERMIT_OFFSET,
    TOTAL_BYTES,
    WORD_BYTES,
    Cause,
    GateState,
    PageError,
    Write,
    check_prefix,
    encode_name,
    encode_prefix,
    fit_causes,
    next_sequence,
    plan_close,
    plan_content,
    plan_takeover,
    require_little_endian,
    same_content,
    word_at,
)
from killswitch.gate.reader import GateError, GateUnavailable, boot_id_bytes

MAX_PERMIT_AHEAD_NS: Final = 3_600 * 1_000_000_000
"""A permit further ahead than an hour is a unit mixed up, not a permit; it would outlive every other safeguard."""

LOCAL_LIMIT_ID: Final = "local-limit"
"""Id of the freeze that stands for local causes beyond the rows of a page; :meth:`GateWriter.lift_local` takes it."""

_OPEN_TRIES: Final = 10
_FILE_MODE: Final = 0o644
_DIRECTORY_MODE: Final = 0o755


class GateOwned(GateError):
    """Another process writes this gate. Attribute ``owner_pid``: its process id as it wrote it, 0 when unknown."""

    def __init__(self, path: Path, owner_pid: int) -> None:
        who = f"process {owner_pid}" if owner_pid else "another process"
        super().__init__(
            f"{who} writes the gate at {path} already: one node has one agent; stop that one first, or give this one a "
            "path of its own"
        )
        self.owner_pid = owner_pid


class GateWriter:
    """The one writer of a node's gate page. All methods may be called from any thread.

    The page is closed from the first moment, and again after :meth:`close`. What it does not do: it renews nothing by
    itself, and it cannot recall an order that passed.
    """

    def __init__(self, path: str | os.PathLike[str], *, cluster: str, node: str, clock: NowNs = now_ns) -> None:
        """Create the page, or take over the one that is there, and close it.

        Args:
            path: the file; its directories are made when missing. It belongs on memory, ``/dev/shm`` or the like.
            cluster: at most 64 bytes.
            node: at most 64 bytes.
            clock: the clock of the deadlines.

        Raises:
            GateOwned: a living process holds the page.
            GateUnavailable: the file cannot be made, is no gate page, or belongs to another user; or a big-endian host.
            ValueError: a name that does not fit.
        """
        encode_name(cluster, "cluster")
        encode_name(node, "node")
        self.path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._local: tuple[Freeze, ...] = ()
        self._listed: tuple[Freeze, ...] = ()
        self._synthetic: tuple[Cause, ...] = (_own("agent_start", "the agent has started and has no permit yet"),)
        self._closed = False
        self._closed_early_ns = 0
        self._prefix = encode_prefix(CLOCK_ID, boot_id_bytes())
        try:
            require_little_endian()
            self._fd = _lock_page(self.path)
        except OSError as error:
            raise GateUnavailable(f"the gate page at {self.path} cannot be made: {error}") from error
        except PageError as error:
            raise GateUnavailable(f"the gate page at {self.path} cannot be written: {error}") from error
        self._map = mmap.mmap(self._fd, TOTAL_BYTES)
        self._words = memoryview(self._map).cast("Q")
        now = clock()
        self._state = GateState(
            cluster=cluster,
            node=node,
            causes=fit_causes(self._synthetic),
            writer_pid=os.getpid(),
            writer_instance=secrets.randbits(64),
            changed_at_ns=now,
            heartbeat_ns=now,
        )
        self._trusted = False
        self._take_over()

    @property
    def state(self) -> GateState:
        """What the page says now."""
        with self._lock:
            return self._state

    @property
    def changed_at_ns(self) -> int:
        """When epoch or causes changed last, on the writer's clock, taken after the gate had closed."""
        return self.state.changed_at_ns

    @property
    def is_published(self) -> bool:
        """False when the file at the path is no longer this writer's page, so that new readers would not find it.

        It happens: session managers clean ``/dev/shm`` when a user logs out. Close this writer and make a new one.
        """
        try:
            found = self.path.stat()
            mine = os.fstat(self._fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino) and found.st_size >= TOTAL_BYTES

    def update(self, freezes: Sequence[Freeze], *, epoch: int, permit_deadline_ns: int) -> None:
        """Make the page say what the flag says.

        Causes that :meth:`close_now` added stay until ``freezes`` lists them (from then on they go when the flag lets
        them go) or :meth:`lift_local` is called. An epoch older than the page's comes from a slow thread or a store
        that went back: it can add causes but takes none away, and it extends nothing.

        Args:
            freezes: every cause in force; those for other nodes are left out here.
            epoch: epoch of the flag that they come from.
            permit_deadline_ns: until when the node may trade. One earlier than the page's is not taken over, because
                renewals can finish in another order than they began; 0 withdraws the permit.

        Raises:
            ValueError: the deadline is more than an hour ahead; or the epoch is no epoch; the causes are on
                the page all the same, and the permit is withdrawn.
            GateError: the writer is closed.
        """
        with self._lock:
            self._require_open()
            try:
                fault = self._apply(freezes, epoch, permit_deadline_ns)
            except BaseException:
                self._fail()
                raise
        if fault:
            raise ValueError(fault)

    def extend(self, permit_deadline_ns: int) -> None:
        """Renew the permit when nothing else has changed: three stores.

        A deadline earlier than the page's changes nothing, 0 withdraws the permit.

        Raises:
            ValueError: the deadline is more than an hour ahead; the permit is withdrawn.
            GateError: the writer is closed.
        """
        with self._lock:
            self._require_open()
            deadline, fault = self._deadline(permit_deadline_ns)
            if self._trusted:
                self._write(replace(self._state, permit_deadline_ns=deadline))
            else:
                self._show(self._listed, epoch=self._state.epoch, permit_deadline_ns=deadline)
        if fault:
            raise ValueError(fault)

    def close_now(self, freeze: Freeze) -> None:
        """Add a cause that this node found by itself, before any store knows of it.

        Closing early is always safe. The cause stays as :meth:`update` says.

        Raises:
            GateError: the writer is closed; the gate is too.
        """
        with self._lock:
            self._require_open()
            try:
                self._add_local(freeze)
            except BaseException:
                self._fail()
                raise

    def close_early(self) -> None:
        """Let no order pass until the next change of the page, which must follow at once.

        For who sees that a freeze has come and has not understood it yet: this is one store, understanding it takes
        a hundred times as long.

        Raises:
            GateError: the writer is closed; the gate is too.
        """
        with self._lock:
            self._require_open()
            self._close_fast_word()
            self._closed_early_ns = self._clock()

    def lift_local(self, freeze_id: str) -> None:
        """Take back a cause that :meth:`close_now` added and no flag ever carried. Unknown ids change nothing."""
        with self._lock:
            self._require_open()
            self._local = tuple(local for local in self._local if local.id != freeze_id)
            self._show(self._listed, epoch=self._state.epoch, permit_deadline_ns=self._state.permit_deadline_ns)

    def close(self) -> None:
        """Close the gate, say so on the page, and let go of it. The file stays, closed. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._synthetic = (_own("agent_stopped", "the agent has stopped and renews no permit"),)
            self._close_fast_word()
            try:
                self._show(self._listed, epoch=self._state.epoch, permit_deadline_ns=0)
            finally:
                self._words.release()
                self._map.close()
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> GateWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise GateError(f"the writer of the gate at {self.path} is closed, and so is the gate")

    def _close_fast_word(self) -> None:
        """The one store that stops every order on the node, before anything is counted, encoded or compared."""
        self._words[OPEN_UNTIL_OFFSET // WORD_BYTES] = 0
        self._state = replace(self._state, open_until_ns=0)

    def _apply(self, freezes: Sequence[Freeze], epoch: int, permit_deadline_ns: int) -> str:
        """Do what :meth:`update` says; return a sentence when a figure was wrong and the permit is withdrawn."""
        relevant = tuple(freeze for freeze in freezes if _touches(freeze, self._state.node))
        if relevant:
            self._close_fast_word()
        deadline, fault = self._deadline(permit_deadline_ns)
        if type(epoch) is not int or not 0 <= epoch <= MAX_WORD:
            epoch, deadline, fault = -1, 0, f"{epoch!r} is no epoch; the gate is closed"
        if epoch < self._state.epoch:
            kept = self._listed + tuple(freeze for freeze in relevant if freeze not in self._listed)
            deadline = 0 if fault else self._state.permit_deadline_ns
            self._show(kept, epoch=self._state.epoch, permit_deadline_ns=deadline)
            return fault
        self._synthetic = ()
        self._local = tuple(local for local in self._local if not _carried(local, relevant))
        self._show(relevant, epoch=epoch, permit_deadline_ns=deadline)
        return fault

    def _add_local(self, freeze: Freeze) -> None:
        if not _touches(freeze, self._state.node):
            return
        self._close_fast_word()
        if freeze not in self._local:
            full = len(self._local) >= MAX_ROWS
            self._local = (*self._local[: MAX_ROWS - 1], _too_many(freeze)) if full else (*self._local, freeze)
        self._show(self._listed, epoch=self._state.epoch, permit_deadline_ns=self._state.permit_deadline_ns)

    def _fail(self) -> None:
        """Freeze after an update that could not be understood, until one that can: it may have been a freeze."""
        self._close_fast_word()
        self._synthetic = (_own("gate_fault", "the agent could not write a change of the flag to the gate"),)
        self._show(self._listed, epoch=self._state.epoch, permit_deadline_ns=self._state.permit_deadline_ns)

    def _deadline(self, wanted_ns: int) -> tuple[int, str]:
        """Return the deadline to write and, for one that cannot be meant, a sentence; then the permit is withdrawn."""
        now = self._clock()
        # Not an instance check: True is an int, and a float may be NaN, which is neither before nor after anything.
        if type(wanted_ns) is not int or wanted_ns > now + MAX_PERMIT_AHEAD_NS:
            return 0, (
                f"a permit until {wanted_ns!r} is no whole number of nanoseconds at most an hour ahead of the clock, "
                f"which says {now}; the gate is closed"
            )
        if wanted_ns <= 0:
            return 0, ""
        return max(wanted_ns, self._state.permit_deadline_ns), ""

    def _show(self, listed: tuple[Freeze, ...], *, epoch: int, permit_deadline_ns: int) -> None:
        """Write the causes in force, wherever they come from."""
        self._listed = listed
        known = [*listed, *(local for local in self._local if local not in listed)]
        causes = fit_causes((*self._synthetic, *(_cause(freeze) for freeze in known)))
        self._write(replace(self._state, epoch=epoch, causes=causes, permit_deadline_ns=permit_deadline_ns))

    def _write(self, wanted: GateState) -> None:
        """Bring the page to a state. What is interrupted here is repaired by the next call, and blocks until then."""
        if not self._trusted:
            self._take_over()
        old = self._state
        new = replace(wanted, open_until_ns=0 if wanted.causes else wanted.permit_deadline_ns)
        self._trusted = False
        self._store(plan_close(old, new))
        now = self._clock()
        new = replace(new, heartbeat_ns=now)
        if not same_content(old, new):
            closed_ns, self._closed_early_ns = self._closed_early_ns or now, 0
            new = replace(new, changed_at_ns=closed_ns, sequence=next_sequence(old.sequence))
        self._store(plan_content(old, new))
        self._state = new
        self._trusted = True

    def _take_over(self) -> None:
        """Write the known state, closed, over whatever the page holds."""
        page = self._map[:]
        new = replace(self._state, permit_deadline_ns=0, open_until_ns=0, causes=self._state.causes or _HANDOVER)
        self._store(plan_takeover(page, new, self._prefix))
        self._state = replace(new, sequence=next_sequence(word_at(page, OFFSET["sequence"])))
        self._trusted = True

    def _store(self, writes: Sequence[Write]) -> None:
        for offset, value in writes:
            if isinstance(value, int):
                self._words[offset // WORD_BYTES] = value
            else:
                self._map[offset : offset + len(value)] = value


def _own(trigger: str, reason: str) -> Cause:
    return Cause(trigger, GLOBAL, Mode.FROZEN, trigger, reason)


_HANDOVER: Final = (_own("gate_repair", "the agent repairs the gate page after a change that was interrupted"),)


def _cause(freeze: Freeze) -> Cause:
    return Cause(freeze.id, freeze.scope, freeze.mode, freeze.trigger, freeze.reason)


def _too_many(last: Freeze) -> Freeze:
    """One global freeze that stands for the local causes that are not kept one by one."""
    reason = f"more than {MAX_ROWS} causes were raised on this node that no flag carries; everything is frozen"
    return Freeze(LOCAL_LIMIT_ID, GLOBAL, Mode.FROZEN, "cause_limit", reason, last.actor, last.at)


def _touches(freeze: Freeze, node: str) -> bool:
    """Tell whether any order of this node can fall in the freeze; one for another node must not cost the fast path."""
    return freeze.scope.covers({"node": node})


def _carried(local: Freeze, listed: Sequence[Freeze]) -> bool:
    """Tell whether the flag carries a local cause now, at least as strictly."""
    return any(freeze.id == local.id and freeze.scope == local.scope and freeze.mode >= local.mode for freeze in listed)


def _lock_page(path: Path) -> int:
    """Return the descriptor of a page at ``path`` that is ours to write, locked, of full size.

    Raises:
        GateOwned: a living process holds it.
        PageError: what is there is not a page of ours.
        OSError: it cannot be made.
    """
    _make_directories(path.parent)
    for _ in range(_OPEN_TRIES):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
        try:
            _take_lock(fd, path)
            if _stands_at(fd, path) and _prepare(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        # Somebody replaced the file between open and lock, or it was of another layout and has just been retired.
        os.close(fd)
    raise PageError(f"it was replaced {_OPEN_TRIES} times while it was being opened")


def _make_directories(directory: Path) -> None:
    """Make missing directories readable for routers of other users, whatever the umask; leave existing ones alone."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir(_DIRECTORY_MODE)
            path.chmod(_DIRECTORY_MODE)


def _take_lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raw = os.pread(fd, WORD_BYTES, OFFSET["writer_pid"])
        raise GateOwned(path, int.from_bytes(raw, "little")) from None


def _stands_at(fd: int, path: Path) -> bool:
    try:
        found, mine = path.stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _prepare(fd: int, path: Path) -> bool:
    """Make a locked file a page of this layout in size and mode; ``False`` when it had to be retired instead.

    Raises:
        PageError: it belongs to another user, or it is a file of something else.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise PageError(
            f"it is not a plain file of user {os.geteuid()}, so others could open the gate; remove it first"
        )
    os.fchmod(fd, _FILE_MODE)
    header = os.pread(fd, HEADER_BYTES, 0)
    if header.startswith(MAGIC) and not _is_ours(header):
        _retire(fd, path)
        return False
    if not header.startswith(MAGIC) and any(header):
        raise PageError("a file that is not a gate page is there; remove it first, or correct the path")
    # Reserved and not only sized: on a full /dev/shm a store into a hole would kill the agent with SIGBUS.
    os.posix_fallocate(fd, 0, TOTAL_BYTES)
    return True


def _is_ours(header: bytes) -> bool:
    """Tell whether a page can be taken over in place: same layout and clock; of an older boot is fine."""
    prefix_bytes = OFFSET["boot_id"] + BOOT_ID_BYTES
    try:
        check_prefix(header.ljust(prefix_bytes, b"\0"), clock_id=CLOCK_ID, boot_id=header[OFFSET["boot_id"] :][:16])
    except PageError:
        return False
    return True


def _retire(fd: int, path: Path) -> None:
    """Close a page of another layout version, by the words that stand still in all versions, and take its name away.

    Its readers find the fast word and the permit at 0, look at the path, and find the page that comes next.
    """
    for offset in (OPEN_UNTIL_OFFSET, PERMIT_OFFSET):
        os.pwrite(fd, bytes(WORD_BYTES), offset)
    path.unlink()
