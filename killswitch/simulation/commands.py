"""demo, replay, scenario: a cluster, a tape or a named run, played and judged. Each loads what it plays when asked."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from killswitch import __version__
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

DEFAULT_BALANCE_USD = 100_000.0

SCENARIOS = {
    "risk-monitor": "Limits and an edge collapse on one RuntimeRiskMonitor; byte for byte the same with "
    "MM_FREEZE_UTC_ISO set.",
    "chaos": "Account monitor and circuit breaker on an account of 100,000 USD; byte for byte the same for one --seed.",
    "rig": "Exposure, policy and derisk orders through a day of trading, on a clock of its own.",
}
"""Command -> what its runs are of."""

WIDTH = 80
NAME_WIDTH = 22


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
    from killswitch.simulation.demo.run import DemoOptions, option_faults, run_demo

    configure_logging("warning")
    chosen: Literal["table", "json"] = output or ("json" if context.wants_json else "table")
    options = DemoOptions(
        nodes=nodes, routers=routers, bars=bars, seed=seed, speed=speed, kill_agent=kill_agent, output=chosen
    )
    faults = option_faults(options)
    if faults:
        raise CommandError("; ".join(faults), 2)
    sys.exit(run_demo(options))


@click.command()
@click.option(
    "--bars", type=click.Path(path_type=Path), required=True, help="CSV: timestamp,open,high,low,close,volume."
)
@click.option("--limits", type=click.Path(path_type=Path), help="File like config/risk_limits.yaml; else the defaults.")
@click.option("--balance", type=float, help="Initial balance, in USD; else initial_balance_usd, else 100,000.")
@click.option("--quantity", type=float, help="Position held, below 0 short; else long for the whole balance.")
@click.option("--symbol", default="BTCUSDT", show_default=True, help="What the bars are of.")
@click.pass_obj
def replay(
    context: CommandContext,
    *,
    bars: Path,
    limits: Path | None,
    balance: float | None,
    quantity: float | None,
    symbol: str,
) -> None:
    """Show when the account monitor would have warned and killed on a tape, and how deep the account went.

    A position is held through the whole tape; nothing is sent and nothing is frozen. Times without a zone are UTC.
    Exits 0 whether or not it would have killed, and 2 when bars, limits or options cannot be used.
    """
    # Only who replays pays for these.
    from killswitch.risk.process.risk_limits_file import load_risk_limits
    from killswitch.simulation import replay as tape_replay
    from killswitch.simulation.tape import bars_from_csv

    configure_logging("warning")
    _only_errors()
    try:
        account_limits = load_risk_limits(limits)
        if balance is None:
            balance = account_limits.initial_balance_usd or DEFAULT_BALANCE_USD
        options = tape_replay.ReplayOptions(balance_usd=balance, quantity=quantity, symbol=symbol)
        played = tape_replay.replay(bars_from_csv(bars), account_limits, options)
    except OSError as error:
        raise CommandError(f"{bars}: cannot be read ({error.strerror})", EXIT_USAGE) from error
    except ValueError as error:  # what is wrong with bars, limits or options, as a sentence
        raise CommandError(str(error), EXIT_USAGE) from error
    if context.wants_json:
        context.emit_json(
            "replay", {"file": str(bars), "limits_file": str(limits) if limits else None, **played.to_json()}
        )
    else:
        click.echo(tape_replay.table(played))


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
        report,
        run_chaos,
        start_of_environment,
        table,
        verdict,
    )

    configure_logging("warning")
    _only_errors()
    start = start_of_environment()
    try:
        runs = run_chaos(name, seed=seed, start=start)
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from error
    if context.wants_json:
        click.echo(report(runs, seed=seed, start=start, version=__version__), nl=False)
    else:
        click.echo(table(runs))
    if verdict(runs) != "OK":
        raise click.exceptions.Exit(EXIT_ERROR)


def _only_errors() -> None:
    """Drop every line of the log but those of level ``error``: the CRITICAL ones are rehearsed, and are the report."""
    import structlog

    processors = structlog.get_config()["processors"]
    structlog.configure(processors=[_drop_rehearsed, *processors])


def _drop_rehearsed(_logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    import structlog

    if method != "error":
        raise structlog.DropEvent
    return line
