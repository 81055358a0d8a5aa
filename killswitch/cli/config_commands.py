"""config: check the settings and say what they promise; show them; write their JSON schema."""

from __future__ import annotations

import json

import click

from killswitch.cli.context import CommandContext


@click.group()
def config() -> None:
    """Check and show the settings."""


@config.command()
@click.pass_obj
def check(context: CommandContext) -> None:
    """Check every setting, and print the bounds that follow: how long anybody may go on trading after a freeze.

    Exits 2 with one sentence for each fault.
    """
    from killswitch.core.permit import worst_case  # noqa: PLC0415 - only when used

    settings = context.settings()
    bounds = worst_case(settings.timing.to_core())
    if context.wants_json:
        body = {
            "cluster": settings.cluster,
            "store": settings.store,
            "timing": settings.timing.model_dump(),
            "worst_case": {
                "reachable_ms": round(bounds.reachable_ms, 3),
                "unreachable_ms": round(bounds.unreachable_ms, 3),
                "failover_ms": round(bounds.failover_ms, 3),
            },
        }
        context.emit_json("config.check", body)
        return
    click.echo("the settings are sound")
    click.echo(
        f"every router stops within {bounds.reachable_ms:.0f} ms of a freeze where its node reaches the store, "
        f"or by itself within {bounds.unreachable_ms:.0f} ms"
    )
    click.echo(f"a standby coordinator leads within {bounds.failover_ms:.0f} ms of the leader's death")


@config.command()
@click.pass_obj
def show(context: CommandContext) -> None:
    """Print the settings in force, with file, environment and options applied."""
    import yaml  # noqa: PLC0415 - only when used

    values = context.settings().model_dump(mode="json")
    if context.wants_json:
        context.emit_json("config.show", {"settings": values})
    else:
        click.echo(yaml.safe_dump(values, sort_keys=False), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON schema of the settings file."""
    from killswitch.config import Settings  # noqa: PLC0415 - only when used

    click.echo(json.dumps(Settings.model_json_schema(), indent=2))
