"""replay: a tape of bars through the account monitor."""

from __future__ import annotations

from pathlib import Path

import click

from killswitch.cli.context import EXIT_USAGE, CommandContext, CommandError, configure_logging

DEFAULT_BALANCE_USD = 100_000.0


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
    from killswitch.simulation.quiet_log import only_errors
    from killswitch.simulation.tape import bars_from_csv

    configure_logging("warning")
    only_errors()
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
