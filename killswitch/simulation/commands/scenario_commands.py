"""scenario: named runs with a verdict."""

from __future__ import annotations

import logging
import textwrap
from typing import TYPE_CHECKING

import click

from killswitch.cli.context import (
    EXIT_ERROR,
    EXIT_STORE_UNAVAILABLE,
    EXIT_USAGE,
    CommandContext,
    CommandError,
    configure_logging,
    talk,
)

if TYPE_CHECKING:
    from killswitch.simulation.rig import RigRun

SCENARIOS = {
    "risk-monitor": "Limits and an edge collapse on one RuntimeRiskMonitor; byte for byte the same with "
    "MM_FREEZE_UTC_ISO set.",
    "chaos": "Account monitor and circuit breaker on an account of 100,000 USD; byte for byte the same for one --seed.",
    "rig": "Exposure, policy and derisk orders through a day of trading, on a clock of its own.",
}
"""Command -> what its runs are of."""

WIDTH = 80
NAME_WIDTH = 22


@click.group()
def scenario() -> None:
    """Named runs with a verdict."""


@scenario.command("list")
@click.pass_obj
def list_scenarios(context: CommandContext) -> None:
    """List the scenarios, and the runs of each by name."""
    runs = _runs()
    if context.wants_json:
        body = [
            {"name": name, "meaning": meaning, "runs": [{"name": one, "title": title} for one, title in runs[name]]}
            for name, meaning in SCENARIOS.items()
        ]
        context.emit_json("scenarios", {"scenarios": body})
        return
    for name, meaning in SCENARIOS.items():
        click.echo(_entry(name, meaning))
        for one, title in runs[name]:
            click.echo(_entry(f"  {one}", title))
    talk("\nPlay one: killswitch scenario chaos flash_crash; all of a kind: killswitch scenario rig")


def _runs() -> dict[str, list[tuple[str, str]]]:
    """Name and title of every run that a command plays, as the runs themselves have them."""
    from killswitch.simulation.chaos import CHAOS
    from killswitch.simulation.rig import TITLES

    return {
        "risk-monitor": [],
        "chaos": [(name, title) for name, (title, _) in CHAOS.items()],
        "rig": [(name, f"{title}.") for name, title in TITLES.items()],
    }


def _entry(name: str, meaning: str) -> str:
    """One entry of the list, folded to 80 columns."""
    return textwrap.fill(
        meaning,
        WIDTH,
        initial_indent=name.ljust(NAME_WIDTH),
        subsequent_indent=" " * NAME_WIDTH,
        break_on_hyphens=False,
    )


def _failed(check: str) -> str:
    return textwrap.fill(check, WIDTH, initial_indent=" " * 5, subsequent_indent=" " * 7)


@scenario.command("risk-monitor", help=SCENARIOS["risk-monitor"])
def risk_monitor() -> None:
    from killswitch.simulation.risk_monitor import main_text

    configure_logging("warning")  # the CRITICAL line of the freeze goes to stderr, the document to stdout
    click.echo(main_text(), nl=False)


@scenario.command(help=SCENARIOS["rig"])
@click.argument("name", default="all")
@click.option(
    "--registry",
    metavar="URL",
    help="Where the orders are kept, redis://HOST:PORT/DB, under a prefix of their own; in memory unless it is given.",
)
@click.option("--keep-orders", is_flag=True, help="Leave the orders in that Redis; otherwise they are removed.")
@click.pass_obj
def rig(context: CommandContext, *, name: str, registry: str | None, keep_orders: bool) -> None:
    import structlog

    from killswitch.simulation.rig import report

    configure_logging("warning")
    # A rehearsal's modes are its report; on stderr only what went wrong.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if keep_orders and registry is None:
        raise CommandError("--keep-orders keeps them in a Redis; name it with --registry redis://HOST:PORT", EXIT_USAGE)
    runs = _rig_runs(name, registry, keep=keep_orders)
    if context.wants_json:
        click.echo(report(runs), nl=False)
    else:
        for run in runs:
            held = sum(check.holds for check in run.checks)
            click.echo(f"{run.name}  {run.verdict:<6}  {held:>2}/{len(run.checks)} checks  {run.title}")
            for check in run.checks:
                if not check.holds:
                    click.echo(_failed(f"{check.what}: expected {check.expected!r}, was {check.actual!r}"))
    if any(run.verdict != "OK" for run in runs):
        raise click.exceptions.Exit(EXIT_ERROR)


def _rig_runs(name: str, registry: str | None, *, keep: bool) -> list[RigRun]:
    from killswitch.routing.order_registry import RegistryUnavailable
    from killswitch.simulation.rig import play_all

    try:
        if registry is None:
            return play_all(name)
        from killswitch.routing.redis_order_registry import RedisRegistries

        with RedisRegistries(registry, keep=keep) as registries:
            runs = play_all(name, registries.make)
            if keep:
                talk(f"the orders are kept in {registries.address}, below {{{registries.prefix}:1}} and so on")
            return runs
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    except RegistryUnavailable as error:
        raise CommandError(str(error), EXIT_STORE_UNAVAILABLE) from error


@scenario.command(help=SCENARIOS["chaos"])
@click.argument("name", default="all")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the prices.")
@click.pass_obj
def chaos(context: CommandContext, name: str, seed: int) -> None:
    from killswitch.simulation.chaos import (
        installed_version,
        report,
        run_chaos,
        start_of_environment,
        table,
        verdict,
    )
    from killswitch.simulation.quiet_log import only_errors

    configure_logging("warning")
    only_errors()
    start = start_of_environment()
    try:
        runs = run_chaos(name, seed=seed, start=start)
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    if context.wants_json:
        click.echo(report(runs, seed=seed, start=start, version=installed_version()), nl=False)
    else:
        click.echo(table(runs))
    if verdict(runs) != "OK":
        raise click.exceptions.Exit(EXIT_ERROR)
