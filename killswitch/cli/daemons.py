"""What every daemon's command does alike: its name, its signals, the first line."""

from __future__ import annotations

import re
import signal
import sys
from typing import Protocol

import click

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


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
