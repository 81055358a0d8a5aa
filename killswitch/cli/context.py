"""What the subcommands share: settings, the store, errors as sentences, two kinds of output, how a daemon runs."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import click

if TYPE_CHECKING:
    from rich.table import Table

    from killswitch.cluster.cluster import Cluster
    from killswitch.cluster.cluster_set import ClusterSet
    from killswitch.settings.config import Settings

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOT_CONFIRMED = 3
EXIT_STORE_UNAVAILABLE = 4
EXIT_CONFLICT = 5

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""What a key of a store takes as the name of a node or a coordinator."""


class CommandError(click.ClickException):
    """A sentence for the operator and the exit code that goes with it."""

    def __init__(self, sentence: str, exit_code: int = EXIT_ERROR) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance, as its docs say


@dataclass
class CommandContext:
    """Global options, as given."""

    config_path: Path | None
    store_urls: tuple[str, ...]
    cluster_name: str | None
    output: str

    @property
    def wants_json(self) -> bool:
        """True when stdout holds one JSON document."""
        return self.output == "json"

    def settings(self, **overrides: Any) -> Settings:
        """Read the settings with the command line over them; any fault of them ends the command.

        Args:
            **overrides: what else the command line says, by section.
        """
        from killswitch.settings.config import load_settings

        return load_settings(self.config_path, self._given() | overrides)

    def needed_settings(self, *needed: str) -> Settings:
        """Read the settings for a command of an operator: a fault of what it does not need is said and stops nothing.

        Args:
            needed: what it cannot do without; cluster and store unless told otherwise.
        """
        return self.settings_and_faults(*needed)[0]

    def settings_and_faults(self, *needed: str) -> tuple[Settings, list[str]]:
        """As :meth:`needed_settings`, for a command that tells the faults among what it finds as well."""
        from killswitch.settings.config import load_needed_settings

        settings, faults = load_needed_settings(self.config_path, self._given(), needed or ("cluster", "store"))
        # A stderr that is closed or full must not keep a freeze from its store.
        with suppress(OSError, ValueError, AttributeError):
            for fault in faults:
                talk(fault)
        return settings, faults

    def sound_settings(self) -> Settings:
        """Read what is sound of the settings, for a check that tells everything; a section with a fault is built in."""
        from killswitch.settings.config import load_needed_settings

        return load_needed_settings(self.config_path, self._given(), ())[0]

    def _given(self) -> dict[str, Any]:
        given = {"store": list(self.store_urls) or None, "cluster": self.cluster_name}
        return {name: value for name, value in given.items() if value is not None}

    @contextmanager
    def clusters(
        self, settings: Settings | None = None, *, request_timeout_ms: int | None = None
    ) -> Iterator[ClusterSet]:
        """Open every store and give the cluster in them; all are closed on the way out.

        Args:
            settings: as read already; what an operator needs when ``None``, see :meth:`needed_settings`.
            request_timeout_ms: time for one call, where it is not that of the settings.
        """
        from killswitch.cluster.cluster import Cluster
        from killswitch.cluster.cluster_set import ClusterSet
        from killswitch.stores import open_store

        settings = settings or self.needed_settings()
        configure_logging("warning")
        timing = settings.timing.to_core()
        with ExitStack() as stack:
            stores = []
            for url in settings.stores:
                try:
                    opened = open_store(
                        url,
                        request_timeout_ms=request_timeout_ms or timing.request_timeout_ms,
                        backoff_cap_ms=timing.backoff_cap_ms,
                    )
                except ValueError as error:
                    raise CommandError(str(error), EXIT_USAGE) from error
                stores.append(stack.enter_context(opened))
            yield ClusterSet([Cluster(store, settings.cluster, timing=timing) for store in stores])

    @contextmanager
    def cluster(self, settings: Settings | None = None, *, request_timeout_ms: int | None = None) -> Iterator[Cluster]:
        """Open the store and give the cluster in it, for what deals with one store at a time."""
        from killswitch.stores.urls import without_secrets

        settings = settings or self.needed_settings()
        if len(settings.stores) > 1:
            named = " or ".join(f"--store {without_secrets(url)}" for url in settings.stores)
            raise CommandError(f"this deals with one store at a time; give {named}", EXIT_USAGE)
        with self.clusters(settings, request_timeout_ms=request_timeout_ms) as both:
            yield both.clusters[0]

    def emit_json(self, schema: str, body: dict[str, Any]) -> None:
        """Write the one JSON document of this command."""
        click.echo(json.dumps({"schema": f"killswitch.{schema}/1", **body}, indent=2, ensure_ascii=False))


def operator_name() -> str:
    """Who types, for the history: ``operator:USER@HOST``; ``KILLSWITCH_ACTOR`` names somebody else."""
    named = os.environ.get("KILLSWITCH_ACTOR")
    if named:
        return named
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid{os.getuid()}"
    return f"operator:{user}@{os.uname().nodename}"


def talk(text: str) -> None:
    """Say something to the person; never on stdout."""
    click.echo(text, err=True)


def confirm(question: str, *, needs: str, otherwise: str, yes: bool) -> None:
    """Ask before something that cannot be taken back, unless ``yes`` was said already.

    Raises:
        CommandError: the answer is no (``otherwise`` says what was left alone), or nobody can answer (``needs``).
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(f"{needs}; give --yes where nobody can answer", EXIT_USAGE)
    if not click.confirm(question, err=True):
        raise CommandError(otherwise, EXIT_ERROR)


def new_table(*columns: str) -> Table:
    """A table that cuts nothing: on a narrow terminal a figure goes on in the next line."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        # A figure that is cut would be another figure.
        table.add_column(column, overflow="fold")
    return table


def or_dash(value: object) -> str:
    """A cell of a table; what is not known is a dash."""
    return "-" if value is None else str(value)


def print_table(table: Table) -> None:
    """Write a table to stdout: as wide as the terminal, else as ``COLUMNS`` says, else 160 columns."""
    from rich.console import Console

    # Without a terminal rich would assume 80 columns and cut. A width that is no number is not worth an error here.
    told = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else (int(told) if told.isdecimal() else 0) or 160
    # A reason may hold brackets, and is no markup.
    Console(width=width, highlight=False, soft_wrap=False, markup=False).print(table)


def configure_logging(level: Literal["info", "warning"]) -> None:
    """Log to stderr: for people on a terminal, one JSON object a line elsewhere."""
    import structlog

    renderer: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


@contextmanager
def sentence_errors() -> Iterator[None]:
    """Turn every expected fault into one sentence and an exit code; bugs keep their traceback."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        raise CommandError(str(error), code) from error


def exit_code_of(error: Exception) -> int | None:
    """Return the exit code of an expected fault, ``None`` for a bug."""
    from killswitch.cluster.cluster import AlreadyInitialised, FreezeNotCommitted, NotInitialised
    from killswitch.cluster.cluster_set import PartlyReleased
    from killswitch.cluster.forgetting import PartlyForgotten
    from killswitch.cluster.records import UnreadableRecord
    from killswitch.core.flag import FlagError
    from killswitch.gate import GateError, GateOwned
    from killswitch.settings.settings_file import SettingsFileError
    from killswitch.stores import Conflict, OutcomeUnknown, StoreError, StoreUnavailable

    ranked: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int], ...] = (
        ((StoreUnavailable, OutcomeUnknown, FreezeNotCommitted), EXIT_STORE_UNAVAILABLE),
        ((PartlyReleased, PartlyForgotten), EXIT_STORE_UNAVAILABLE),
        ((Conflict, FlagError, AlreadyInitialised, GateOwned), EXIT_CONFLICT),
        (SettingsFileError, EXIT_USAGE),
        ((NotInitialised, UnreadableRecord, StoreError, GateError), EXIT_ERROR),
    )
    return next((code for kinds, code in ranked if isinstance(error, kinds)), None)


# -- daemons ---------------------------------------------------------------------------------------------------------


class Daemon(Protocol):
    """What runs until it is told to stop."""

    def run(self) -> None:
        """Run until :meth:`stop`."""

    def stop(self) -> None:
        """End :meth:`run` soon. Called by a signal handler."""


def run_until_signalled(daemon: Daemon, what: str) -> None:
    """Run a daemon in the foreground until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    click.echo(f"{what} runs", err=True)
    sys.stderr.flush()
    daemon.run()


def require_name(name: str, option: str) -> None:
    """Refuse a name that no key of a store takes.

    Raises:
        click.UsageError: with the rule.
    """
    if not NAME.fullmatch(name):
        raise click.UsageError(f"{option} {name!r}: a name is made of letters, digits, '.', '_' and '-', at most 63")
