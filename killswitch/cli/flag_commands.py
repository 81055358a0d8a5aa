"""init, freeze, release: what changes the flag. They need the store alone; no coordinator has to be alive."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from killswitch.cli.context import (
    EXIT_NOT_CONFIRMED,
    EXIT_STORE_UNAVAILABLE,
    CommandContext,
    CommandError,
    confirm,
    operator_name,
    or_dash,
    print_table,
    talk,
)

if TYPE_CHECKING:
    from killswitch.cluster.cluster import Cluster, Committed
    from killswitch.cluster.cluster_set import ClusterSet
    from killswitch.core.certificate import Certificate
    from killswitch.core.flag import Flag, Freeze

DEFAULT_MARGIN_S = 2.0
"""Waiting time for a certificate beyond the longest that a silent node may go on trading."""


@click.command()
@click.option("--reason", default="the cluster is set up", show_default=True, help="For the history.")
@click.pass_obj
def init(context: CommandContext, reason: str) -> None:
    """Write the first flag of a cluster: epoch 1, nothing frozen. A second time it exits 5 and changes nothing."""
    with context.clusters(context.settings()) as stores:
        flags = stores.initialise(actor=operator_name(), reason=reason)
        made = [flag for flag in flags if flag is not None]
        if context.wants_json:
            context.emit_json("init", {"cluster": stores.name, "epoch": made[0].epoch, "mode": made[0].mode.name})
            return
        for address, flag in zip(stores.addresses, flags, strict=True):
            where = f" in {address}" if len(flags) > 1 else ""
            if flag is None:
                click.echo(f"cluster {stores.name!r} exists already{where}; its flag was left alone")
                continue
            state = "FROZEN, for its flag was gone" if flag.freezes else "nothing is frozen"
            click.echo(f"cluster {stores.name!r} is initialised{where} at epoch {flag.epoch}: {state}")


@click.command()
@click.option("--reason", required=True, help="Why, for everybody who will read the history.")
@click.option("--scope", "scopes", multiple=True, help="What to stop, such as venue:bybit,symbol:BTCUSDT. [global]")
@click.option("--mode", type=click.Choice(["frozen", "reduce-only"]), default="frozen", show_default=True)
@click.option("--trigger", default="manual", show_default=True, help="Kind of cause, one word.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the certificate; exits 3, for nothing is confirmed yet.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), help="Seconds to wait. [permit bound + 2 s]")
@click.pass_obj
def freeze(
    context: CommandContext,
    *,
    reason: str,
    scopes: Sequence[str],
    mode: str,
    trigger: str,
    no_wait: bool,
    timeout_s: float | None,
) -> None:
    """Stop trading now, and prove it: never asks a question, needs the store alone.

    Exits 0 only when every gate is proven closed (stopped) and every working order proven cancelled (flat); 3 when the
    freeze is in force but that is not proven in time. Each --scope is a freeze of its own.
    """
    from killswitch.cluster.certificates import (
        CertificateCollector,
        NodesUnreadable,
        wait_in_all_stores,
    )
    from killswitch.core.permit import expiry_bound_ms

    wanted = _wanted_freezes(reason, scopes or ("global",), mode, trigger)
    with context.clusters() as stores, ExitStack() as stack:
        timing = stores.clusters[0].timing
        bound_ms = expiry_bound_ms(timing.permit_ttl_ms, timing.clock_rate_ratio)
        timeout_ms = int(timeout_s * 1000) if timeout_s else int(bound_ms + DEFAULT_MARGIN_S * 1000)
        collectors = [stack.enter_context(CertificateCollector(cluster)) for cluster in stores.clusters]
        commits = _commit_all(stores, wanted, timeout_ms)
        first = next(iter(commits[-1].values()))
        talk(f"frozen at epoch {first.flag.epoch} after {first.committed_ms:.0f} ms; collecting proof")
        certificate = None
        if not no_wait:
            parts = [
                (collectors[number], done, frozenset(done.flag.standing_for(cause.id) for cause in wanted))
                for number, done in commits[-1].items()
            ]
            try:
                certificate = wait_in_all_stores(parts, timeout_ms=timeout_ms, on_progress=_progress())
            except NodesUnreadable as error:
                # In force and not proven is exit 3, whatever the store does: 4 would say that nobody may have heard it.
                talk(str(error))
        _emit_freeze(context, stores, wanted, commits, certificate)
    if certificate is None or not (certificate.stopped and certificate.flat):
        sys.exit(EXIT_NOT_CONFIRMED)


def _commit_all(stores: ClusterSet, wanted: Sequence[Freeze], timeout_ms: int) -> list[Mapping[int, Committed]]:
    """Freeze one scope after the other, each in every store; a failure says which are in force already.

    The commits of a cause are those of the stores that have taken *all* causes up to it, so that the last names the
    stores that can prove everything.
    """
    from killswitch.cluster.cluster import FreezeNotCommitted

    commits: list[Mapping[int, Committed]] = []
    for cause in wanted:
        try:
            done = stores.freeze(cause, timeout_ms=timeout_ms)
        except FreezeNotCommitted as error:
            scopes = ", ".join(str(earlier.scope) for earlier in wanted[: len(commits)])
            already = f"in force already: {scopes}. " if scopes else ""
            raise CommandError(f"{already}For {cause.scope}: {error}", EXIT_STORE_UNAVAILABLE) from error
        for number, failure in done.failures.items():
            talk(f"{cause.scope}: in force, but {stores.addresses[number]} does not have it: {failure}")
        complete = {n: c for n, c in done.commits.items() if not commits or n in commits[-1]}
        if not complete:
            raise CommandError(
                "every scope is in force, but no single store has them all, so nothing can be certified; freeze again",
                EXIT_NOT_CONFIRMED,
            )
        commits.append(complete)
    return commits


def _wanted_freezes(reason: str, scopes: Sequence[str], mode: str, trigger: str) -> list[Freeze]:
    from killswitch.clock import wall_now
    from killswitch.cluster.cluster import new_freeze_id
    from killswitch.core.flag import Freeze
    from killswitch.core.modes import Mode
    from killswitch.core.scopes import Scope

    try:
        return [
            Freeze(
                id=new_freeze_id(),
                scope=Scope.parse(scope),
                mode=Mode.parse(mode),
                trigger=trigger,
                reason=reason,
                actor=operator_name(),
                at=wall_now(),
            )
            for scope in scopes
        ]
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _emit_freeze(
    context: CommandContext,
    stores: ClusterSet,
    wanted: Sequence[Freeze],
    commits: Sequence[Mapping[int, Committed]],
    certificate: Certificate | None,
) -> None:
    last = commits[-1]
    epoch = next(iter(last.values())).flag.epoch
    if context.wants_json:
        body: dict[str, Any] = {
            "cluster": stores.name,
            "epoch": epoch,
            "freeze": wanted[0].to_json(),
            "freezes": [cause.to_json() for cause in wanted],
            "committed_ms": round(min(done.committed_ms for done in commits[0].values()), 3),
            "certificate": certificate.to_json() if certificate else None,
        }
        if len(stores.clusters) > 1:
            body["stores"] = [
                {"store": address, "epoch": last[number].flag.epoch if number in last else None}
                for number, address in enumerate(stores.addresses)
            ]
        context.emit_json("freeze", body)
        return
    for cause in wanted:
        click.echo(f"{cause.mode.name} {cause.scope} at epoch {epoch}: {cause.id}")
    if certificate is not None:
        show_certificate(certificate.to_json())


def show_certificate(certificate: dict[str, Any]) -> None:
    """Print a certificate as a table with its verdict below."""
    from rich.table import Table

    table = Table("node", box=None, pad_edge=False)
    table.add_column("state", no_wrap=True)
    for heading in ("gate closed after", "cancelled", "still open", "last sequence"):
        table.add_column(heading, justify="right")
    for line in certificate["nodes"]:
        table.add_row(
            line["node"],
            line["state"],
            "-" if line["gated_ms"] is None else f"{line['gated_ms']:.1f} ms",
            str(line["orders_cancelled"]),
            or_dash(line["orders_open"]),
            or_dash(line["last_sequence"]),
        )
    print_table(table)
    for line in certificate["nodes"]:
        if line["note"]:
            click.echo(f"{line['node']}: {line['note']}")
    if not certificate["nodes"]:
        click.echo("no node is registered: there was nothing to stop")
    stopped = "stopped: every gate is proven closed" if certificate["stopped"] else "NOT PROVEN STOPPED"
    flat = "flat: every working order in the scope is proven cancelled" if certificate["flat"] else "NOT PROVEN FLAT"
    click.echo(f"{stopped}; {flat} ({certificate['elapsed_ms']:.0f} ms)")


def _progress() -> Any:
    """Say on stderr what is still missing, when it changes; quiet when nobody looks."""
    if not sys.stderr.isatty():
        return None
    said = ""

    def say(certificate: Certificate) -> None:
        nonlocal said
        missing = [line.node for line in certificate.nodes if line.gated_ms is None]
        working = [line.node for line in certificate.nodes if line.gated_ms is not None and not line.flat]
        now = f"not yet proven stopped: {', '.join(missing) or 'none'}; not yet flat: {', '.join(working) or 'none'}"
        if now != said:
            talk(now)
            said = now

    return say


@click.command()
@click.option(
    "--epoch",
    "epochs",
    type=click.IntRange(min=1),
    required=True,
    multiple=True,
    help="The epoch that `killswitch status` shows; with several stores once for each, in their order.",
)
@click.option("--reason", required=True, help="Why, for everybody who will read the history.")
@click.option("--scope", "scopes", multiple=True, help="Lift the freezes of exactly this scope.")
@click.option("--freeze", "freeze_ids", multiple=True, metavar="ID", help="Lift this freeze. Without either: all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
@click.pass_obj
def release(
    context: CommandContext,
    *,
    epochs: Sequence[int],
    reason: str,
    scopes: Sequence[str],
    freeze_ids: Sequence[str],
    yes: bool,
    timeout_s: float,
) -> None:
    """Lift freezes from exactly the named epoch. Shows what it lifts and asks, or takes --yes.

    Exits 5 when the epoch is not the current one or a freeze is not in force; nothing is released then.
    """
    if scopes and freeze_ids:
        raise click.UsageError("name freezes by --scope or by --freeze, not by both")
    with context.clusters() as stores:
        if len(epochs) != len(stores.clusters):
            raise click.UsageError(
                f"--epoch is given once for each store, in their order: {len(stores.clusters)} times, not {len(epochs)}"
            )
        flags = stores.read_flags()
        ids = _ids_to_lift(flags, epochs, scopes, freeze_ids)
        _confirm(flags, ids, yes=yes)
        released = stores.release(flags, epochs=epochs, ids=ids, actor=operator_name(), reason=reason)
        after = [done.flag if done else flag for done, flag in zip(released, flags, strict=True)]
        confirmed = all(
            _await_release(cluster, done.flag, timeout_s)
            for cluster, done in zip(stores.clusters, released, strict=True)
            if done is not None
        )
        _emit_release(context, stores, after, ids, confirmed=confirmed)
    if not confirmed:
        talk("not every live node has confirmed the release in time; `killswitch status` shows which")
        sys.exit(EXIT_NOT_CONFIRMED)


def _emit_release(
    context: CommandContext, stores: ClusterSet, after: Sequence[Flag], ids: Sequence[str], *, confirmed: bool
) -> None:
    from killswitch.core.flag import merge
    from killswitch.core.modes import strictest

    left = merge(*(flag.freezes for flag in after))
    epochs = ", ".join(str(flag.epoch) for flag in after)
    if not context.wants_json:
        click.echo(f"released {', '.join(sorted(ids))} at epoch {epochs}; {len(left)} still in force")
        return
    body = {
        "cluster": stores.name,
        "epoch": after[0].epoch,
        "mode": strictest(flag.mode for flag in after).name,
        "lifted": sorted(ids),
        "freezes": [cause.to_json() for cause in left],
        "confirmed": confirmed,
    }
    if len(after) > 1:
        body["stores"] = [
            {"store": address, "epoch": flag.epoch} for address, flag in zip(stores.addresses, after, strict=True)
        ]
    context.emit_json("release", body)


def _ids_to_lift(
    flags: Sequence[Flag], epochs: Sequence[int], scopes: Sequence[str], freeze_ids: Sequence[str]
) -> list[str]:
    from killswitch.core.flag import StaleEpoch, UnknownFreeze, merge
    from killswitch.core.scopes import Scope

    for flag, epoch in zip(flags, epochs, strict=True):
        if epoch != flag.epoch:
            raise StaleEpoch(epoch, flag.epoch)
    if freeze_ids:
        return list(freeze_ids)
    try:
        wanted = [Scope.parse(scope) for scope in scopes]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    freezes = merge(*(flag.freezes for flag in flags))
    for scope in wanted:
        if all(cause.scope != scope for cause in freezes):
            raise UnknownFreeze(
                f"no freeze of scope {scope} is in force at epoch {', '.join(map(str, epochs))}; nothing was released"
            )
    lifted = (cause.id for cause in freezes if not wanted or cause.scope in wanted)
    return list(dict.fromkeys(lifted))


def _confirm(flags: Sequence[Flag], ids: Sequence[str], *, yes: bool) -> None:
    from killswitch.core.flag import merge

    freezes = merge(*(flag.freezes for flag in flags))
    for cause in freezes:
        fate = "lift" if cause.id in ids else "keep"
        talk(f"{fate}  {cause.id}  {cause.mode.name} {cause.scope}  {cause.trigger}: {cause.reason}  ({cause.actor})")
    confirm(
        f"Lift {len(ids)} of {len(freezes)} freezes of cluster {flags[0].cluster!r}?",
        needs="a release asks before it lifts anything",
        otherwise="nothing was released",
        yes=yes,
    )


def _await_release(cluster: Cluster, flag: Flag, timeout_s: float) -> bool:
    """Wait until every live node has taken over the epoch of the release."""
    from killswitch.core.permit import NANOSECONDS_PER_MS
    from killswitch.stores import StoreError

    deadline_ns = cluster.clock() + int(timeout_s * 1000) * NANOSECONDS_PER_MS
    while True:
        try:
            live = set(cluster.membership().live)
            acks = cluster.acks()
        except StoreError:
            live, acks = {""}, {}
        if all(node in acks and acks[node].epoch >= flag.epoch for node in live):
            return True
        if cluster.clock() >= deadline_ns:
            return False
        cluster.pause(0.05)
