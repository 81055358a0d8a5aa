"""gate: what the page on this machine says, as a router would read it."""

from __future__ import annotations

from pathlib import Path

import click

from killswitch.cli.context import CommandContext, CommandError, print_table

NANOSECONDS_PER_MS = 1_000_000


@click.command()
@click.argument("path", required=False, type=click.Path())
@click.option("--include", is_flag=True, help="Print the directory of the C header, for `cc -I`, and nothing else.")
@click.pass_obj
def gate(context: CommandContext, path: str | None, include: bool) -> None:
    """Show a gate page. Without PATH it is the one that the settings name. Needs no store."""
    from killswitch.clock import now_ns
    from killswitch.core.modes import Mode
    from killswitch.gate import Gate

    if include:
        click.echo(include_directory())
        return

    if path is None:
        settings = context.needed_settings("cluster", "agent")
        path = settings.agent.in_cluster(settings.cluster).gate
    with Gate.open(path) as page:
        state = page.snapshot()
        now = now_ns()
        permit_ms_left = max(0, (state.permit_deadline_ns - now) // NANOSECONDS_PER_MS)
        body = {
            "path": path,
            "cluster": state.cluster,
            "node": state.node,
            "open": page.is_open,
            "mode": state.mode.name if permit_ms_left else "FROZEN",
            "epoch": state.epoch,
            "permit_ms_left": permit_ms_left,
            "writer_pid": state.writer_pid,
            "heartbeat_ms_ago": (now - state.heartbeat_ns) // NANOSECONDS_PER_MS,
            "causes": [
                {
                    "id": cause.id,
                    "scope": str(cause.scope),
                    "mode": cause.mode.name,
                    "trigger": cause.trigger,
                    "reason": cause.reason,
                }
                for cause in state.causes
            ],
        }
    if context.wants_json:
        context.emit_json("gate", body)
        return
    shut = not permit_ms_left or any(
        cause.mode is Mode.FROZEN and set(dict(cause.scope.parts)) <= {"node"} for cause in state.causes
    )
    word = "OPEN" if body["open"] else "CLOSED" if shut else "RESTRICTED"
    click.echo(
        f"{word}  node {state.node} of cluster {state.cluster}: {body['mode']} at epoch {state.epoch}, "
        f"permit {permit_ms_left} ms left, agent {state.writer_pid} wrote {body['heartbeat_ms_ago']} ms ago"
    )
    if state.causes:
        from rich.table import Table

        table = Table("freeze", "mode", "scope", "trigger", "reason", box=None, pad_edge=False)
        for cause in state.causes:
            table.add_row(cause.id, cause.mode.name, str(cause.scope), cause.trigger, cause.reason)
        print_table(table)


def include_directory() -> Path:
    """Where ``killswitch_gate.h`` is: in the installed package, or beside it in a checkout.

    Raises:
        CommandError: this installation has no headers.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "include", package.parent / "deploy" / "gate"):
        if (folder / "killswitch_gate.h").is_file():
            return folder
    raise CommandError(f"there is no killswitch_gate.h in {package / 'include'}; install killswitch-cluster again")
