"""agent run: the agent of a node."""

from __future__ import annotations

import secrets
import signal
from pathlib import Path

import click

from killswitch import __version__
from killswitch.cli.context import (
    EXIT_CONFLICT,
    EXIT_USAGE,
    CommandContext,
    CommandError,
    configure_logging,
    require_name,
    run_until_signalled,
)


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
    from killswitch.risk.process.limits_audit import AuditUnwritable
    from killswitch_agent.agent import Agent
    from killswitch_agent.journal import JournalDamaged, JournalUnwritable
    from killswitch_agent.link_server import LinkUnavailable
    from killswitch_agent.membership import Identity
    from killswitch_agent.rules.node_rules import load_node_limits

    require_name(node, "--node")
    options = {"gate": gate, "link": link, "state_dir": state_dir, "http_port": http_port}
    given = {name: value for name, value in options.items() if value is not None}
    settings = context.settings(**({"agent": given} if given else {}))
    own = settings.agent.in_cluster(settings.cluster)
    try:
        limits = load_node_limits(own)
    except ValueError as error:  # RiskFileError, RuleNotUsable: what is wrong with limits or rules, as sentences
        raise CommandError(str(error), EXIT_USAGE) from error
    identity = Identity(
        node=node,
        instance=secrets.token_hex(8),
        build=__version__,
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
        run_until_signalled(daemon, f"agent of {node} at http://{own.http_host}:{daemon.http_port}")
        if daemon.name_taken is not None:
            raise CommandError(str(daemon.name_taken), EXIT_CONFLICT)
        if daemon.failure is not None:
            raise CommandError(daemon.failure)
