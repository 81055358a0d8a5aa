"""The ``killswitch`` command. A subcommand's module is imported only when it is used: the freeze must start quickly.

Exit codes: 0 done and confirmed, 1 error, 2 usage, 3 written but not confirmed by everybody in time, 4 store
unavailable, 5 conflict.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from killswitch.cli.context import CommandContext, sentence_errors

COMMANDS = {
    "init": ("killswitch.cli.flag_commands", "Write the first flag of a cluster: epoch 1, nothing frozen."),
    "freeze": ("killswitch.cli.flag_commands", "Stop trading now. Never asks a question."),
    "release": ("killswitch.cli.flag_commands", "Lift named freezes from a named epoch."),
    "status": ("killswitch.cli.read_commands", "The flag, the nodes and who leads."),
    "nodes": ("killswitch.cli.node_commands", "Every registered node with what it last reported; forget one."),
    "exposure": ("killswitch.cli.read_commands", "What the cluster holds, by symbol and node."),
    "history": ("killswitch.cli.read_commands", "Every change of the flag; --verify checks the chain."),
    "watch": ("killswitch.cli.read_commands", "Show every change of the flag as it happens."),
    "doctor": ("killswitch.cli.doctor_command", "Say what is wrong with store, cluster and machine."),
    "gate": ("killswitch.cli.read_commands", "Show a gate page of this machine."),
    "config": ("killswitch.cli.config_commands", "Check and show the settings."),
    "agent": ("killswitch_agent.command", "Run the agent of a node."),
    "coordinator": ("killswitch_coordinator.command", "Run a coordinator."),
    "replay": ("killswitch.simulation.commands", "A tape of bars through the account monitor."),
    "scenario": ("killswitch.simulation.commands", "Named runs with a verdict."),
    "demo": ("killswitch.simulation.commands", "A cluster of trading nodes is stopped by its own rules, with proof."),
}


class LazyGroup(click.Group):
    """Lists all subcommands without importing one, and imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which an operator needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the module of one subcommand."""
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[name][0]), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[name][0]}.{name} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list from the texts here, so that --help imports nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; every expected fault becomes one sentence and an exit code."""
        with sentence_errors():
            return super().invoke(ctx)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", "config_path", type=click.Path(path_type=Path), envvar="KILLSWITCH_CONFIG", help="YAML file.")
@click.option(
    "--store",
    "stores",
    multiple=True,
    help="URL of the store: etcd://h1:2379,h2:2379, redis://h, zookeeper://h or embedded:///path. Given again: one "
    "more store, and a freeze in any of them freezes.",
)
@click.option("--cluster", help="Name of the cluster.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What stdout holds.",
)
@click.version_option(package_name="killswitch-cluster", prog_name="killswitch")
@click.pass_context
def cli(
    ctx: click.Context, config_path: Path | None, stores: tuple[str, ...], cluster: str | None, output: str
) -> None:
    """Stop every order router of a trading cluster at once, and prove that it did.

    Exit codes: 0 done and confirmed, 1 error, 2 usage, 3 written but not confirmed by everybody in time, 4 store
    unavailable, 5 conflict.
    """
    ctx.obj = CommandContext(config_path=config_path, store_urls=stores, cluster_name=cluster, output=output)


def main() -> None:
    """Entry point of the ``killswitch`` script."""
    cli(prog_name="killswitch")
