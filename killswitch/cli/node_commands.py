"""nodes: what every node last reported. nodes forget: take one that is gone for good out of the books.

Everything that was known of a node that is forgotten stays on record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from killswitch.cli.context import (
    EXIT_ERROR,
    CommandContext,
    CommandError,
    confirm,
    exit_code_of,
    new_table,
    operator_name,
    or_dash,
    print_table,
    talk,
)
from killswitch.cli.read_commands import node_lines

if TYPE_CHECKING:
    from killswitch.cluster.cluster import Cluster
    from killswitch.cluster.cluster_set import ClusterSet
    from killswitch.cluster.forgetting import LostNode

WAIT_STEP_S = 0.1


@click.group(invoke_without_command=True)
@click.pass_context
def nodes(ctx: click.Context) -> None:
    """Every registered node with what it last reported; lost ones with what they held last."""
    if ctx.invoked_subcommand is None:
        _show_nodes(ctx.obj)


def _show_nodes(context: CommandContext) -> None:
    with context.cluster() as cluster:
        lines = node_lines(cluster.membership())
        if context.wants_json:
            context.emit_json("nodes", {"cluster": cluster.name, "nodes": lines})
            return
        figures = ("gross USD", "net USD", "P&L USD", "working", "last seq")
        table = new_table("node", "state", "mode", "permit left", *figures)
        for line in lines:
            table.add_row(
                line["node"], line["state"], line["mode"], f"{line['permit_ms_left']} ms", _dollars(line["gross_usd"]),
                _dollars(line["net_usd"]), _dollars(line["pnl_usd"]), or_dash(line["working_orders"]),
                or_dash(line["last_sequence"]),
            )  # fmt: skip
        print_table(table)
        for text in _risk_lines(lines):
            click.echo(text)


def _risk_lines(lines: list[dict[str, Any]]) -> list[str]:
    """What the nodes' rules find, files of limits that are not sound, and limits that are not the same everywhere."""
    texts = [
        f"{line['node']} {finding['level'].replace('_', '-')}: {finding['reason']}"
        for line in lines
        for finding in line["risk"].get("findings", [])
    ]
    texts += [
        f"{line['node']} keeps its limits from before: {fault}"
        for line in lines
        for fault in line["risk"].get("limits_faults", [])
    ]
    live = {line["node"]: line["limits_hash"] for line in lines if line["state"] == "LIVE"}
    if len(set(live.values())) > 1:
        named = ", ".join(f"{node} {limits_hash}" for node, limits_hash in live.items())
        texts.append(f"the nodes run with different limits: {named}")
    return texts


def _dollars(usd: float | None) -> str:
    return "-" if usd is None else f"{usd:,.0f}"


@nodes.command()
@click.argument("node")
@click.option("--reason", default="the node is gone for good", show_default=True, help="For the history.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def forget(context: CommandContext, *, node: str, reason: str, yes: bool) -> None:
    """Take a lost node out of the books: what it last held counts no more, and no certificate names it.

    It cancels nothing: ask the venue first. Shows what will be forgotten and asks, or takes --yes; waits until no
    permit of the node can be left. With several stores it forgets in each that knows the node, and in none while one
    of them does not answer. The history keeps all that was known. Exits 5 when the node is alive, shows itself
    meanwhile, or is unknown; nothing is forgotten then.
    """
    from killswitch.cluster.forgetting import forget_in_all

    with context.clusters(context.settings()) as stores:
        found = _look(stores, node)
        accounts = [remains.account() for _, remains in found]
        places = [f" in {cluster.store.address}" if len(stores.clusters) > 1 else "" for cluster, _ in found]
        for place, account in zip(places, accounts, strict=True):
            _show(account, place)
        confirm(
            f"Forget node {node!r} of cluster {stores.name!r}?",
            needs="forgetting a node asks first",
            otherwise="nothing was forgotten",
            yes=yes,
        )
        _wait_until_no_permit_is_left(found)
        committed = forget_in_all(found, actor=operator_name(), reason=reason)
        if not context.wants_json:
            for place, done in zip(places, committed, strict=True):
                at = f"at epoch {done.flag.epoch}"
                click.echo(f"forgotten{place}: node {node} {at}; its last report is in the history")
            return
        entries = [
            {
                "store": cluster.store.address,
                "epoch": done.flag.epoch,
                "mode": done.flag.mode.name,
                "history_hash": done.flag.head,
                "forgotten": account,
            }
            for (cluster, _), done, account in zip(found, committed, accounts, strict=True)
        ]
        first = {name: value for name, value in entries[0].items() if name != "store"}
        body: dict[str, Any] = {"cluster": stores.name, "node": node, "reason": reason, **first}
        if len(stores.clusters) > 1:
            body["stores"] = entries
        context.emit_json("forget", body)


def _look(stores: ClusterSet, node: str) -> list[tuple[Cluster, LostNode]]:
    """Look in every store; one that does not answer keeps all of them from forgetting."""
    from killswitch.cluster.forgetting import command_for, look_in_all
    from killswitch.stores import StoreError

    try:
        return look_in_all(stores.clusters, node)
    except StoreError as error:
        if len(stores.clusters) == 1:
            raise
        alone = ", ".join(command_for(cluster, node) for cluster in stores.clusters)
        raise CommandError(
            f"{error}; nothing was forgotten, because the node would stay in the certificates of that store: run this "
            f"again when every store answers, or for each by itself, once it does: {alone}",
            exit_code_of(error) or EXIT_ERROR,
        ) from error


def _show(account: Mapping[str, Any], place: str) -> None:
    """Say on stderr what will be forgotten, and what that does not do."""
    report, record = account["report"], account["record"]
    talk(f"forget  node {account['node']}{place}{_where(record)}")
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


def _wait_until_no_permit_is_left(found: Sequence[tuple[Cluster, LostNode]]) -> None:
    from killswitch.cluster.forgetting import wait_left_ms

    def left_ms() -> float:
        return max(wait_left_ms(cluster, remains) for cluster, remains in found)

    (cluster, remains), *_ = found
    left = left_ms()
    if left > 0:
        talk(f"waiting {left:.0f} ms, until no permit of node {remains.node} can be left")
    while left > 0:
        cluster.pause(min(WAIT_STEP_S, left / 1000))
        left = left_ms()
