"""The agent's memory: every flag that it has acted on, on its own disk, so that a restart forgets no freeze.

One line of JSON per flag, synced to the disk before the agent opens for it. A torn last line is what a power cut leaves
and is passed over with a warning (nothing was opened by it); a damaged line in the middle means that the
memory cannot be trusted, and the agent does not start.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from killswitch.cluster.records import FlagRecord, UnreadableRecord, read_flag
from killswitch.core.flag import Flag
from killswitch.durable_file import append_to_file, replace_file

log = structlog.get_logger(__name__)

COMPACT_AFTER_LINES = 1_000


class JournalDamaged(Exception):
    """The journal cannot be trusted; the message says which line and what to do."""


class JournalUnwritable(Exception):
    """A flag could not be written and synced: disk full, read-only, gone. The node stays frozen until it can be."""


class Journal:
    """Append-only file of flags.

    Args:
        path: the file; made with its directories when absent.
        cluster: whose flags they are; another cluster's journal is damage.

    Raises:
        JournalDamaged: a line other than the last cannot be read.
        JournalUnwritable: the directory or file cannot be made.
    """

    def __init__(self, path: Path, *, cluster: str) -> None:
        self._path = path
        self._cluster = cluster
        self._lines = 0
        self._ends_torn = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.last = self._load()
        except OSError as error:
            raise JournalUnwritable(
                f"the journal {path} cannot be read or made ({error.strerror}): the node stays frozen; "
                "free or mount its disk, or set agent.state_dir"
            ) from error

    def append(self, flag: Flag) -> None:
        """Write one flag and sync it to the disk.

        Raises:
            JournalUnwritable: it is not safely on the disk.
        """
        line = FlagRecord.from_core(flag).to_bytes() + b"\n"
        try:
            if self._lines >= COMPACT_AFTER_LINES or self._ends_torn:
                replace_file(self._path, line)  # the newest flag says all that those before it do
                self._lines = 0
                self._ends_torn = False
            else:
                append_to_file(self._path, line)
        except OSError as error:
            # Part of a line may be in the file; the next success writes the file anew.
            self._ends_torn = True
            raise JournalUnwritable(
                f"the journal {self._path} cannot be written ({error.strerror}): the node stays frozen until it can"
            ) from error
        self._lines += 1
        self.last = flag

    def _load(self) -> Flag | None:
        if not self._path.exists():
            return None
        if not self._path.is_file():
            # A device or pipe: nothing is remembered in it, and whether it takes a line shows at the first one.
            return None
        content = self._path.read_bytes()
        lines = content.split(b"\n")
        torn = lines.pop()
        newest: Flag | None = None
        for number, line in enumerate(lines, start=1):
            try:
                newest = read_flag(line, key=f"line {number}", cluster=self._cluster)
            except UnreadableRecord as error:
                raise JournalDamaged(
                    f"the journal {self._path} is damaged ({error}): this node cannot know which freezes it has seen; "
                    "look at `killswitch status`, then move the file away"
                ) from error
        if torn:
            log.warning("journal_torn_tail", path=str(self._path), bytes=len(torn))
            self._ends_torn = True
        self._lines = len(lines)
        return newest
