"""scenario: named runs with a verdict."""

from __future__ import annotations

import click

from killswitch.cli.context import configure_logging

SCENARIOS = {
    "risk-monitor": "Limits and an edge collapse on one RuntimeRiskMonitor; byte for byte the same with "
    "MM_FREEZE_UTC_ISO set.",
}


@click.group()
def scenario() -> None:
    """Named runs with a verdict."""


@scenario.command("list")
def list_scenarios() -> None:
    """List the scenarios."""
    for name, meaning in SCENARIOS.items():
        click.echo(f"{name}  {meaning}")


@scenario.command("risk-monitor", help=SCENARIOS["risk-monitor"])
def risk_monitor() -> None:
    from agents.scenarios.risk_monitor import main_text  # noqa: PLC0415 - only when used

    configure_logging("warning")  # the CRITICAL line of the freeze goes to stderr, the document to stdout
    click.echo(main_text(), nl=False)
