"""status, nodes, exposure, history, watch: what only reads (and the group to which `nodes forget` belongs)."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING, Any

import click

from killswitch.cli.context import EXIT_ERROR, EXIT_STORE_UNAVAILABLE, CommandContext, print_table, talk
from killswitch.cli.forget_command import forget

if TYPE_CHECKING:
    from rich.table import Table

    from killswitch.cluster.cluster import Cluster
    from killswitch.cluster.cluster_set import ClusterSet
    from killswitch.cluster.records import LeaderRecord
    from killswitch.cluster.roster import NodeRoster
    from killswitch.core.flag import Flag
    from killswitch.core.history import HistoryEntry
    from killswitch.stores import Entry


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        # On a narrow terminal a figure goes on in the next line; one that is cut would be another figure.
        table.add_column(column, overflow="fold")
    return table


@click.command()
@click.pass_obj
def status(context: CommandContext) -> None:
    """The flag, the nodes and who leads; with several stores what each of them says.

    Exits 4 when a store does not answer; what the others say is shown all the same.
    """
    with context.clusters() as stores:
        if len(stores.clusters) > 1:
            _status_of_several(context, stores)
            return
        cluster = stores.clusters[0]
        seen = _read_status(cluster)
        if context.wants_json:
            context.emit_json("status", _status_body(cluster, *seen))
        else:
            _show_status(cluster, *seen)


def _read_status(cluster: Cluster) -> tuple[Flag, NodeRoster, LeaderRecord | None]:
    return cluster.read_flag().flag, cluster.membership(), _readable_leader(cluster)


def _status_of_several(context: CommandContext, stores: ClusterSet) -> None:
    from killswitch.cluster.cluster_set import EXPECTED_FAULTS
    from killswitch.core.modes import Mode, strictest
    from killswitch.stores import StoreError

    bodies: list[dict[str, Any]] = []
    modes: list[Mode] = []
    unavailable = False
    for cluster in stores.clusters:
        if not context.wants_json:
            click.echo(f"store {cluster.store.address}")
        try:
            seen = _read_status(cluster)
        except EXPECTED_FAULTS as error:
            # What one store does not say is frozen, whatever the others say.
            modes.append(Mode.FROZEN)
            unavailable = unavailable or isinstance(error, StoreError)
            bodies.append({"store": cluster.store.address, "error": str(error)})
            talk(str(error))
            continue
        modes.append(seen[0].mode)
        bodies.append(_status_body(cluster, *seen))
        if not context.wants_json:
            _show_status(cluster, *seen)
    if context.wants_json:
        context.emit_json("status", {"cluster": stores.name, "mode": strictest(modes).name, "stores": bodies})
    else:
        click.echo(f"all stores together: {strictest(modes).name}")
    if unavailable:
        sys.exit(EXIT_STORE_UNAVAILABLE)


def _readable_leader(cluster: Cluster) -> LeaderRecord | None:
    from killswitch.cluster.records import UnreadableRecord

    try:
        return cluster.leader()
    except UnreadableRecord as error:
        talk(str(error))
        return None


def _status_body(cluster: Cluster, flag: Flag, membership: NodeRoster, leader: LeaderRecord | None) -> dict[str, Any]:
    return {
        "cluster": cluster.name,
        "store": cluster.store.address,
        "epoch": flag.epoch,
        "mode": flag.mode.name,
        "freezes": [freeze.to_json() for freeze in flag.freezes],
        "nodes": _node_lines(membership),
        "leader": None if leader is None else {"id": leader.id, "term": leader.term, "since": leader.since},
    }


def _node_lines(membership: NodeRoster) -> list[dict[str, Any]]:
    """One line per registered node. A lost node's permit has run out: its lease outlives every permit."""
    lines = []
    for name in sorted(membership.nodes):
        report = membership.reports.get(name)
        live = name in membership.live
        lines.append(
            {
                "node": name,
                "state": "LIVE" if live else "LOST",
                "mode": report.mode if live and report else "FROZEN",
                "permit_ms_left": report.permit_ms_left if live and report else 0,
                "epoch": report.epoch if report else None,
                "routers": [{"router": router.router, "state": router.state} for router in report.routers]
                if report
                else [],
                "working_orders": report.working_orders if report else None,
                "gross_usd": report.gross_usd if report else None,
                "net_usd": report.net_usd if report else None,
                "pnl_usd": report.pnl_usd if report else None,
                "last_sequence": report.last_sequence if report else None,
                "reported_at": report.at if report else None,
                "risk": dict(report.risk) if report else {},
                "limits_hash": record.limits_hash if (record := membership.nodes.get(name)) else None,
            }
        )
    return lines


def _show_status(cluster: Cluster, flag: Flag, membership: NodeRoster, leader: LeaderRecord | None) -> None:
    led = f"{leader.id} (term {leader.term})" if leader else "nobody"
    scoped = bool(flag.freezes) and all(not freeze.scope.is_global for freeze in flag.freezes)
    where = " in the scopes below, the rest trades" if scoped else ""
    click.echo(f"cluster {cluster.name}: {flag.mode.name}{where} at epoch {flag.epoch}, led by {led}")
    if flag.freezes:
        freezes = _table("freeze", "mode", "scope", "trigger", "reason")
        for freeze in flag.freezes:
            freezes.add_row(freeze.id, freeze.mode.name, str(freeze.scope), freeze.trigger, freeze.reason)
        print_table(freezes)
    nodes = _table("node", "state", "mode", "permit left", "epoch", "routers", "working")
    for line in _node_lines(membership):
        live_routers = sum(router["state"] == "live" for router in line["routers"])
        nodes.add_row(
            line["node"],
            line["state"],
            line["mode"],
            f"{line['permit_ms_left']} ms",
            _dash(line["epoch"]),
            f"{live_routers}/{len(line['routers'])}",
            _dash(line["working_orders"]),
        )
    if membership.nodes:
        print_table(nodes)
    else:
        click.echo("no node is registered yet")


@click.group(invoke_without_command=True)
@click.pass_context
def nodes(ctx: click.Context) -> None:
    """Every registered node with what it last reported; lost ones with what they held last."""
    if ctx.invoked_subcommand is None:
        _show_nodes(ctx.obj)


nodes.add_command(forget)


def _show_nodes(context: CommandContext) -> None:
    with context.cluster() as cluster:
        lines = _node_lines(cluster.membership())
        if context.wants_json:
            context.emit_json("nodes", {"cluster": cluster.name, "nodes": lines})
            return
        table = _table("node", "state", "mode", "permit left", "gross USD", "net USD", "P&L USD", "working", "last seq")
        for line in lines:
            table.add_row(
                line["node"], line["state"], line["mode"], f"{line['permit_ms_left']} ms", _dollars(line["gross_usd"]),
                _dollars(line["net_usd"]), _dollars(line["pnl_usd"]), _dash(line["working_orders"]),
                _dash(line["last_sequence"]),
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


@click.command()
@click.pass_obj
def exposure(context: CommandContext) -> None:
    """What the cluster holds, by symbol and node. Lost nodes count with what they held last, and it says so."""
    with context.cluster() as cluster:
        membership = cluster.membership()
        total = membership.exposure()
        unreadable = membership.unreadable_reports()
        if context.wants_json:
            body = {
                "cluster": cluster.name,
                "gross_usd": total.gross_usd,
                "net_usd": total.net_usd,
                "pnl_usd": total.pnl_usd,
                "working_orders": total.working_orders,
                "by_symbol": dict(total.net_by_symbol),
                "by_node": dict(total.gross_by_node),
                "counted_lost": list(total.counted_lost),
                "never_reported": list(total.never_reported),
                "unreadable": list(unreadable),
            }
            context.emit_json("exposure", body)
            return
        by_symbol = _table("symbol", "net USD")
        for symbol, net_usd in total.net_by_symbol.items():
            by_symbol.add_row(symbol, _money(net_usd))
        by_node = _table("node", "gross USD", "")
        for node, gross_usd in total.gross_by_node.items():
            by_node.add_row(node, _money(gross_usd), "lost: as last known" if node in total.counted_lost else "")
        print_table(by_symbol)
        print_table(by_node)
        click.echo(
            f"gross {_money(total.gross_usd)} USD, net {_money(total.net_usd)} USD, P&L {_money(total.pnl_usd)} USD, "
            f"{total.working_orders} working orders"
        )
        if unreadable:
            talk(f"NOT COUNTED, their reports cannot be read: {', '.join(unreadable)}")


HISTORY_TIMEOUT_MS = 10_000
"""The history grows for ever and is read in one piece, and no gate waits for it."""


@click.command()
@click.option("--verify", is_flag=True, help="Check that nothing was changed, is missing or stands in another order.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Newest entries to show.")
@click.pass_obj
def history(context: CommandContext, verify: bool, limit: int) -> None:
    """Every change of the flag, newest last. With --verify it exits 1 when the chain does not hold."""
    with context.cluster(request_timeout_ms=HISTORY_TIMEOUT_MS) as cluster:
        faults = cluster.verify_history() if verify else []
        entries = cluster.history()
        if context.wants_json:
            body: dict[str, Any] = {
                "cluster": cluster.name,
                "entries": [entry.to_json() for _, entry in entries[-limit:]],
                "verified": not faults if verify else None,
                "faults": [{"epoch": f.epoch, "kind": f.kind, "sentence": f.sentence} for f in faults],
            }
            context.emit_json("history", body)
        else:
            table = _table("epoch", "at", "change", "by", "why")
            for key_epoch, entry in entries[-limit:]:
                table.add_row(str(key_epoch), entry.at[:19] + "Z", entry.kind, entry.actor, _why(entry))
            print_table(table)
            if verify and not faults:
                click.echo(f"verified: {len(entries)} entries, each holding the hash of the one before")
        for fault in faults:
            talk(f"epoch {fault.epoch}: {fault.kind}: {fault.sentence}")
    if faults:
        sys.exit(EXIT_ERROR)


def _why(entry: HistoryEntry) -> str:
    """The reason of a change, with the node that it is about where that is what was changed."""
    return entry.reason if entry.forgotten is None else f"node {entry.forgotten.get('node')}: {entry.reason}"


@click.command()
@click.option("--count", type=click.IntRange(min=1), help="End after this many lines; for ever without it.")
@click.pass_obj
def watch(context: CommandContext, count: int | None) -> None:
    """Show the flag now and at every change, one line each (one JSON object a line with -o json)."""
    from killswitch.cluster.cluster import NotInitialised
    from killswitch.cluster.records import UnreadableRecord
    from killswitch.stores import StoreError

    with context.cluster() as cluster:
        done = threading.Event()
        shown: list[int] = []

        def show(entry: Entry | None) -> None:
            try:
                flag = cluster.parse_flag(entry).flag
            except (NotInitialised, UnreadableRecord) as error:
                talk(f"FROZEN: {error}")
                return
            if done.is_set() or (shown and shown[-1] == flag.epoch):
                return
            shown.append(flag.epoch)
            _show_change(context, flag)
            if count is not None and len(shown) >= count:
                done.set()

        def read_again() -> None:
            try:
                show(cluster.store.read(cluster.keys.flag))
            except StoreError as error:
                talk(f"the store does not answer: {error}")

        cluster.store.read(cluster.keys.flag)  # a store that is not there is an error now, not silence for ever
        subscription = cluster.store.watch(cluster.keys.flag, show, read_again)
        try:
            done.wait()
        except KeyboardInterrupt:
            talk("ended")
        finally:
            done.set()
            subscription.close()


def _show_change(context: CommandContext, flag: Flag) -> None:
    if context.wants_json:
        body = {
            "schema": "killswitch.watch/1",
            "cluster": flag.cluster,
            "epoch": flag.epoch,
            "mode": flag.mode.name,
            "freezes": [freeze.to_json() for freeze in flag.freezes],
        }
        click.echo(json.dumps(body, ensure_ascii=False))
        return
    causes = "; ".join(f"{freeze.id} {freeze.mode.name} {freeze.scope} {freeze.trigger}" for freeze in flag.freezes)
    click.echo(f"epoch {flag.epoch}  {flag.mode.name}  {causes or 'nothing is frozen'}")


def _money(usd: float | None) -> str:
    return "-" if usd is None else f"{usd:,.2f}"


def _dollars(usd: float | None) -> str:
    return "-" if usd is None else f"{usd:,.0f}"


def _dash(value: object) -> str:
    return "-" if value is None else str(value)
