"""demo: a cluster of trading nodes is stopped by its own rules, with proof."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from killswitch.cli.context import CommandContext, CommandError, configure_logging


@click.command()
@click.option("--nodes", type=click.IntRange(min=1), default=3, show_default=True, help="Trading nodes.")
@click.option("--routers", type=click.IntRange(min=1), default=2, show_default=True, help="Order routers on each node.")
@click.option(
    "--bars", type=click.Path(path_type=Path), help="One-minute bars to trade instead of the synthetic crash."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the tape and of the routers.")
@click.option("--speed", type=float, default=1.0, show_default=True, help="How fast the tape plays.")
@click.option("--kill-agent", metavar="NODE", help="Kill this node's agent before the crash, such as n2.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), help="As the global option.")
@click.pass_obj
def demo(
    context: CommandContext, *, nodes: int, routers: int, bars: Path | None, seed: int, speed: float,
    kill_agent: str | None, output: Literal["table", "json"] | None,
) -> None:  # fmt: skip
    """A cluster of trading nodes is stopped by its own rules, with proof, and released again.

    Starts a real etcd, two coordinators, an agent and routers per node and a simulated venue, each a process of its
    own, on loopback. Exits 1 when anything of it did not happen, and says what.
    """
    from killswitch.simulation.demo.demo import DemoOptions, option_faults, run_demo

    configure_logging("warning")
    chosen: Literal["table", "json"] = output or ("json" if context.wants_json else "table")
    options = DemoOptions(
        nodes=nodes, routers=routers, bars=bars, seed=seed, speed=speed, kill_agent=kill_agent, output=chosen
    )
    faults = option_faults(options)
    if faults:
        raise CommandError("; ".join(faults), 2)
    sys.exit(run_demo(options))
