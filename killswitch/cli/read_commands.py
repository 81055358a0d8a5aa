"""status, exposure, history, watch, gate: what only reads. The gate is read as a router would, without the store."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from killswitch.cli.context import (
    EXIT_ERROR,
    EXIT_STORE_UNAVAILABLE,
    CommandContext,
    CommandError,
    new_table,
    or_dash,
    print_table,
    talk,
)

if TYPE_CHECKING:
    from killswitch.cluster.cluster import Cluster
    from killswitch.cluster.cluster_set import ClusterSet
    from killswitch.cluster.records import LeaderRecord
    from killswitch.cluster.roster import NodeRoster
    from killswitch.core.flag import Flag, Freeze
    from killswitch.core.history import HistoryEntry
    from killswitch.gate.layout import Cause
    from killswitch.stores import Entry


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
        "nodes": node_lines(membership),
        "leader": None if leader is None else {"id": leader.id, "term": leader.term, "since": leader.since},
    }


def node_lines(membership: NodeRoster) -> list[dict[str, Any]]:
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
        _show_causes(flag.freezes)
    nodes = new_table("node", "state", "mode", "permit left", "epoch", "routers", "working")
    for line in node_lines(membership):
        live_routers = sum(router["state"] == "live" for router in line["routers"])
        nodes.add_row(
            line["node"],
            line["state"],
            line["mode"],
            f"{line['permit_ms_left']} ms",
            or_dash(line["epoch"]),
            f"{live_routers}/{len(line['routers'])}",
            or_dash(line["working_orders"]),
        )
    if membership.nodes:
        print_table(nodes)
    else:
        click.echo("no node is registered yet")


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
        by_symbol = new_table("symbol", "net USD")
        for symbol, net_usd in total.net_by_symbol.items():
            by_symbol.add_row(symbol, _money(net_usd))
        by_node = new_table("node", "gross USD", "")
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
            table = new_table("epoch", "at", "change", "by", "why")
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


@click.command()
@click.argument("path", required=False, type=click.Path())
@click.option("--include", is_flag=True, help="Print the directory of the C header, for `cc -I`, and nothing else.")
@click.pass_obj
def gate(context: CommandContext, path: str | None, include: bool) -> None:
    """Show a gate page. Without PATH it is the one that the settings name. Needs no store."""
    from killswitch.clock import now_ns
    from killswitch.core.modes import Mode
    from killswitch.core.permit import NANOSECONDS_PER_MS
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
        _show_causes(state.causes)


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


def _show_causes(causes: Iterable[Freeze | Cause]) -> None:
    table = new_table("freeze", "mode", "scope", "trigger", "reason")
    for cause in causes:
        table.add_row(cause.id, cause.mode.name, str(cause.scope), cause.trigger, cause.reason)
    print_table(table)


def _money(usd: float | None) -> str:
    return "-" if usd is None else f"{usd:,.2f}"
