"""config: check the settings and say what they promise; show them; write their JSON schema."""

from __future__ import annotations

import json

import click

from killswitch.cli.context import EXIT_USAGE, CommandContext, CommandError


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
    from killswitch.stores.urls import parse_store_url  # noqa: PLC0415 - as above

    settings = context.settings()
    for url in settings.stores:
        try:
            parse_store_url(url)
        except ValueError as error:
            raise CommandError(f"store: {error}", EXIT_USAGE) from error
    bounds = worst_case(settings.timing.to_core())
    if context.wants_json:
        body = {
            "cluster": settings.cluster,
            "store": _shown(settings.stores),
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
    if len(settings.stores) > 1:
        click.echo(f"{len(settings.stores)} stores: a freeze in any of them freezes, and a release must be in all")
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

    settings = context.settings()
    values = {**settings.model_dump(mode="json"), "store": _shown(settings.stores)}
    if context.wants_json:
        context.emit_json("config.show", {"settings": values})
    else:
        click.echo(yaml.safe_dump(values, sort_keys=False), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON schema of the settings file."""
    from killswitch.config import Settings  # noqa: PLC0415 - only when used

    click.echo(json.dumps(Settings.model_json_schema(), indent=2))


def _shown(urls: tuple[str, ...]) -> str | list[str]:
    """The URL of the store, or those of all, without what must not be seen."""
    from killswitch.stores.urls import without_secrets  # noqa: PLC0415 - only when used

    shown = [without_secrets(url) for url in urls]
    return shown if len(shown) > 1 else shown[0]
