"""agent run, coordinator run: the daemons."""

from __future__ import annotations

import re
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from killswitch.cli.context import EXIT_CONFLICT, EXIT_USAGE, CommandContext, CommandError, configure_logging

if TYPE_CHECKING:
    from killswitch.config import AgentSettings, Settings

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


class _Daemon(Protocol):
    def run(self) -> None: ...
    def stop(self) -> None: ...


@click.group()
def agent() -> None:
    """The agent of a node."""


@agent.command("run")
@click.option("--node", required=True, help="Name of this node, unique in the cluster.")
@click.option("--gate", help="The gate page. [agent.gate]")
@click.option("--link", help="Unix socket for routers. [agent.link]")
@click.option("--state-dir", help="Where the journal lives. [agent.state_dir]")
@click.option("--http-port", type=click.IntRange(0, 65_535), help="0 takes a free port. [agent.http_port]")
@click.pass_obj
def agent_run(
    context: CommandContext, *, node: str, gate: str | None, link: str | None, state_dir: str | None,
    http_port: int | None,
) -> None:  # fmt: skip
    """Run the agent in the foreground until SIGTERM or SIGINT; the gate is closed on the way out.

    The gate stays closed while the store cannot be reached; the agent goes on trying for ever. Files of limits are
    followed while it runs; SIGHUP has them read at once. Exits 2 when limits or rules cannot be used, and 5 when
    another agent holds this node's name or gate.
    """
    from agents.agent import Agent  # noqa: PLC0415 - only the agent pays for it
    from agents.journal import JournalDamaged, JournalUnwritable  # noqa: PLC0415 - as above
    from agents.link_server import LinkUnavailable  # noqa: PLC0415 - as above
    from agents.membership import Identity  # noqa: PLC0415 - as above
    from agents.node_limits import load_node_limits  # noqa: PLC0415 - as above
    from agents.risk.limits_audit import AuditUnwritable  # noqa: PLC0415 - as above

    _require_name(node, "--node")
    settings = context.settings()
    given = {"gate": gate, "link": link, "state_dir": state_dir, "http_port": http_port}
    own = settings.agent.model_copy(update={name: value for name, value in given.items() if value is not None})
    own = own.model_copy(update=own_paths(own, settings.cluster))
    try:
        limits = load_node_limits(own)
    except ValueError as error:  # RiskFileError, RuleNotUsable: what is wrong with limits or rules, as sentences
        raise CommandError(str(error), EXIT_USAGE) from error
    identity = Identity(
        node=node,
        instance=secrets.token_hex(8),
        build=_build(),
        gate=str(Path(own.gate).absolute()),
    )
    with context.clusters(settings) as stores:
        configure_logging("info")
        try:
            daemon = Agent(stores.clusters, own, identity, limits)
        except ValueError as error:  # a section of the limits needs what is not installed or does not exist
            raise CommandError(str(error), EXIT_USAGE) from error
        except (AuditUnwritable, JournalDamaged, JournalUnwritable, LinkUnavailable) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{own.http_host}:{own.http_port} cannot be listened on ({error.strerror})") from error
        signal.signal(signal.SIGHUP, lambda *_: daemon.reload())
        _run(daemon, f"agent of {node} at http://{own.http_host}:{daemon.http_port}")
        if daemon.name_taken is not None:
            raise CommandError(str(daemon.name_taken), EXIT_CONFLICT)
        if daemon.failure is not None:
            raise CommandError(daemon.failure)


def own_paths(own: AgentSettings, cluster: str) -> dict[str, str]:
    """The agent's paths with the name of the cluster in them."""
    names = ("gate", "link", "state_dir", "risk_limits", "risk_rules")
    return {name: getattr(own, name).format(cluster=cluster) for name in names if getattr(own, name) is not None}


@click.group()
def coordinator() -> None:
    """A coordinator: several run, one leads."""


@coordinator.command("run")
@click.option("--id", "candidate", required=True, help="Name of this coordinator.")
@click.option("--http-port", type=click.IntRange(0, 65_535), help="0 takes a free port. [coordinator.http_port]")
@click.pass_obj
def coordinator_run(context: CommandContext, candidate: str, http_port: int | None) -> None:
    """Run a coordinator in the foreground until SIGTERM or SIGINT.

    It serves one store. Where there are several, each has coordinators of its own: give --store.
    """
    from coordinator.coordinator import Coordinator  # noqa: PLC0415 - only the coordinator pays for it

    _require_name(candidate, "--id")
    settings: Settings = context.settings()
    own = settings.coordinator
    if http_port is not None:
        own = own.model_copy(update={"http_port": http_port})
    with context.cluster(settings) as cluster:
        configure_logging("info")
        try:
            daemon = Coordinator(cluster, own, candidate=candidate, instance=secrets.token_hex(8))
        except OSError as error:
            raise CommandError(f"{own.http_host}:{own.http_port} cannot be listened on ({error.strerror})") from error
        _run(daemon, f"coordinator {candidate} at http://{own.http_host}:{daemon.http_port}")


def _run(daemon: _Daemon, what: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    click.echo(f"{what} runs", err=True)
    sys.stderr.flush()
    daemon.run()


def _require_name(name: str, option: str) -> None:
    if not NAME.match(name):
        raise click.UsageError(f"{option} {name!r}: a name is made of letters, digits, '.', '_' and '-', at most 63")


def _build() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - only when used

    try:
        return version("killswitch")
    except PackageNotFoundError:
        return "unknown"
