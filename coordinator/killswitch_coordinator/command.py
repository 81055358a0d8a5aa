"""coordinator run: one of several, and one leads."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import click

from killswitch.cli.context import CommandContext, CommandError, configure_logging, require_name, run_until_signalled

if TYPE_CHECKING:
    from killswitch.settings.config import Settings


@click.group()
def coordinator() -> None:
    """A coordinator: several run, one leads."""


@coordinator.command("run")
@click.option("--id", "candidate", required=True, help="Name of this coordinator.")
@click.option("--http-port", type=click.IntRange(0, 65_535), help="0 takes a free port. [coordinator.http_port]")
@click.pass_obj
def coordinator_run(context: CommandContext, candidate: str, http_port: int | None) -> None:
    """Run a coordinator in the foreground until SIGTERM or SIGINT.

    It serves one store. Where there are several, each has coordinators of its own: give --store.
    """
    from killswitch_coordinator.coordinator import Coordinator

    require_name(candidate, "--id")
    settings: Settings = context.settings()
    own = settings.coordinator
    if http_port is not None:
        own = own.model_copy(update={"http_port": http_port})
    with context.cluster(settings) as cluster:
        configure_logging("info")
        try:
            daemon = Coordinator(cluster, own, candidate=candidate, instance=secrets.token_hex(8))
        except OSError as error:
            raise CommandError(f"{own.http_host}:{own.http_port} cannot be listened on ({error.strerror})") from error
        run_until_signalled(daemon, f"coordinator {candidate} at http://{own.http_host}:{daemon.http_port}")
