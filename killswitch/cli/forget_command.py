"""nodes forget: take a node that is gone for good out of the books, with everything that was known of it on record."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from killswitch.cli.context import EXIT_ERROR, EXIT_USAGE, CommandContext, CommandError, operator_name, talk

if TYPE_CHECKING:
    from killswitch.cluster import Cluster
    from killswitch.forgetting import Remains

WAIT_STEP_S = 0.1


@click.command()
@click.argument("node")
@click.option("--reason", default="the node is gone for good", show_default=True, help="For the history.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def forget(context: CommandContext, *, node: str, reason: str, yes: bool) -> None:
    """Take a lost node out of the books: what it last held counts no more, and no certificate names it.

    It cancels nothing: ask the venue first. Shows what will be forgotten and asks, or takes --yes; waits until no
    permit of the node can be left. The history keeps all that was known. Exits 5 when the node is alive, shows itself
    meanwhile, or is unknown; nothing is forgotten then.
    """
    from killswitch.forgetting import forget as forget_node  # noqa: PLC0415 - loads the store's client
    from killswitch.forgetting import look  # noqa: PLC0415 - as above

    with context.cluster() as cluster:
        cluster.read_flag()  # without a flag that can be read nothing is asked and nothing happens
        remains = look(cluster, node)
        account = remains.account()
        _show(account)
        _confirm(cluster, node, yes=yes)
        _wait_until_no_permit_is_left(cluster, remains)
        committed = forget_node(cluster, remains, actor=operator_name(), reason=reason)
        flag = committed.flag
        if context.wants_json:
            body = {
                "cluster": cluster.name,
                "node": node,
                "epoch": flag.epoch,
                "mode": flag.mode.name,
                "reason": reason,
                "history_hash": flag.head,
                "forgotten": account,
            }
            context.emit_json("forget", body)
        else:
            click.echo(f"forgotten: node {node} at epoch {flag.epoch}; its last report is in the history")


def _show(account: Mapping[str, Any]) -> None:
    """Say on stderr what will be forgotten, and what that does not do."""
    report, record = account["report"], account["record"]
    talk(f"forget  node {account['node']}{_where(record)}")
    if report is None:
        talk("        it never made a report: what it holds is not known")
    elif "unreadable" in report:
        talk(f"        what it holds is not known: {report['unreadable']}")
    else:
        talk(
            f"        last report {report['at']}: gross {report['gross_usd']:,.2f} USD, "
            f"net {report['net_usd']:,.2f} USD, P&L {report['pnl_usd']:,.2f} USD"
        )
        for symbol, held in sorted(report["holdings"].items()):
            talk(f"        {symbol}  {held['quantity']:g} = {held['notional_usd']:,.2f} USD")
        talk(
            f"        {report['working_orders']} working orders, {report['working_notional_usd']:,.2f} USD: they may "
            "work at the venue, and nothing here cancels them"
        )
    if account["permit_ttl_ms"] is None:
        talk("        its record does not say how long its permits last: only you can know that its machine is off")


def _where(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ", which has no record"
    if "unreadable" in record:
        return f" ({record['unreadable']})"
    return f", at {record['address']}, registered {record['registered_at']}"


def _confirm(cluster: Cluster, node: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError("forgetting a node asks first; give --yes where nobody can answer", EXIT_USAGE)
    if not click.confirm(f"Forget node {node!r} of cluster {cluster.name!r}?", err=True):
        raise CommandError("nothing was forgotten", EXIT_ERROR)


def _wait_until_no_permit_is_left(cluster: Cluster, remains: Remains) -> None:
    from killswitch.forgetting import wait_left_ms  # noqa: PLC0415 - only when used

    left_ms = wait_left_ms(cluster, remains)
    if left_ms > 0:
        talk(f"waiting {left_ms:.0f} ms, until no permit of node {remains.node} can be left")
    while left_ms > 0:
        cluster.pause(min(WAIT_STEP_S, left_ms / 1000))
        left_ms = wait_left_ms(cluster, remains)
