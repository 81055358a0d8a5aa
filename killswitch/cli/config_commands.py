"""config: check the settings and say what they promise; show them; write their JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from killswitch.cli.context import EXIT_USAGE, CommandContext, CommandError


@click.group()
def config() -> None:
    """Check and show the settings."""


@config.command()
@click.option("--risk-limits", type=click.Path(path_type=Path), help="Check this file of limits. [agent.risk_limits]")
@click.option("--risk-rules", type=click.Path(path_type=Path), help="Check this file of rules. [agent.risk_rules]")
@click.pass_obj
def check(context: CommandContext, risk_limits: Path | None, risk_rules: Path | None) -> None:
    """Check every setting, and print the bounds that follow: how long anybody may go on trading after a freeze.

    Files of risk limits and rules are checked too, with path and line, and so is that their rules can be loaded; what
    a sound file leaves unwatched is said.
    Exits 2 with one sentence for each fault.
    """
    from killswitch.cli.risk_files import check_risk_files
    from killswitch.core.permit import worst_case
    from killswitch.settings.settings_file import SettingsFileError
    from killswitch.stores import lease_slack_ms

    faults: list[str] = []
    try:
        settings = context.settings()
    except SettingsFileError as error:
        faults += error.faults
        settings = context.sound_settings()
    slacks_ms = []
    for url in settings.stores:
        try:
            slacks_ms.append(lease_slack_ms(url))
        except ValueError as error:
            faults.append(f"store: {error}")
    risk = check_risk_files(settings, risk_limits, risk_rules, faults)
    if faults:
        raise CommandError("\n".join(faults), EXIT_USAGE)
    # Each store has coordinators of its own, so what holds for all is what holds where a lease ends latest.
    bounds = worst_case(settings.timing.to_core(), lease_slack_ms=max(slacks_ms))
    if context.wants_json:
        body: dict[str, Any] = {
            "cluster": settings.cluster,
            "store": _shown(settings.stores),
            "timing": settings.timing.model_dump(),
            "worst_case": {
                "reachable_ms": round(bounds.reachable_ms, 3),
                "unreachable_ms": round(bounds.unreachable_ms, 3),
                "failover_ms": round(bounds.failover_ms, 3),
            },
            "risk_files": {file.kind: file.to_json() for file in risk},
        }
        context.emit_json("config.check", body)
        return
    click.echo("the settings are sound")
    if len(settings.stores) > 1:
        click.echo(f"{len(settings.stores)} stores: a freeze in any of them freezes, and a release must be in all")
    click.echo(
        f"every router stops within {bounds.reachable_ms:.0f} ms of a freeze where its node reaches the store, "
        f"or by itself within {bounds.unreachable_ms:.0f} ms"
    )
    click.echo(
        f"a standby coordinator leads within {bounds.failover_ms:.0f} ms of the leader's death; "
        f"{max(slacks_ms)} ms of it is how much longer than asked {_whose(settings.stores)} may keep the leader's lease"
    )
    for file in risk:
        click.echo(f"{file.path}: sound; {file.sentence}")
        for note in file.notes:
            click.echo(f"{file.path}: {note}")


@config.command()
@click.pass_obj
def show(context: CommandContext) -> None:
    """Print the settings in force, with file, environment and options applied."""
    import yaml

    settings = context.settings()
    values = {**settings.model_dump(mode="json"), "store": _shown(settings.stores)}
    if context.wants_json:
        context.emit_json("config.show", {"settings": values})
    else:
        click.echo(yaml.safe_dump(values, sort_keys=False), nl=False)


@config.command()
@click.option(
    "--of",
    "which",
    type=click.Choice(["settings", "risk-limits", "risk-rules"]),
    default="settings",
    show_default=True,
    help="Which file.",
)
def schema(which: str) -> None:
    """Print the JSON schema of a file: of the settings, of the risk limits, or of the rules of exposure."""
    click.echo(json.dumps(_schema_of(which), indent=2))


def _schema_of(which: str) -> dict[str, Any]:
    if which == "risk-limits":
        from killswitch.risk.process.risk_limits_file import limits_schema

        return limits_schema()
    if which == "risk-rules":
        from killswitch.risk.exposure.policy_settings import rules_schema

        return rules_schema()
    from killswitch.settings.config import Settings
    from killswitch.settings.section import settings_schema

    return settings_schema(Settings)


@config.command("limits-history")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def limits_history(context: CommandContext, file: Path) -> None:
    """Show every change of risk limits that an agent wrote to FILE, and whether the chain of entries holds.

    FILE is limits-audit-NODE.jsonl in the agent's state_dir. Exits 1 when something was changed, is missing or
    stands in another order.
    """
    from killswitch.cli.risk_files import show_limits_history

    show_limits_history(context, file)


def _whose(urls: tuple[str, ...]) -> str:
    return "the store" if len(urls) == 1 else "the slowest of the stores"


def _shown(urls: tuple[str, ...]) -> str | list[str]:
    """The URL of the store, or those of all, without what must not be seen."""
    from killswitch.stores.urls import without_secrets

    shown = [without_secrets(url) for url in urls]
    return shown if len(shown) > 1 else shown[0]
