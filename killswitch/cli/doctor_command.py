"""doctor: what is wrong with the stores, the cluster and this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from killswitch.cli.context import EXIT_ERROR, EXIT_STORE_UNAVAILABLE, CommandContext, print_table

if TYPE_CHECKING:
    from killswitch.doctor.measurements import Examination, StoreExamined
    from killswitch.doctor.verdict import Finding
    from killswitch.settings.config import Settings


@click.command()
@click.option("--node-gate", metavar="PATH", help="The gate page of a node of this machine. [agent.gate]")
@click.pass_obj
def doctor(context: CommandContext, node_gate: str | None) -> None:
    """Say what is wrong with the store, the cluster and this machine, and what to do about it.

    Writes to one key of its own below the cluster's keys, and deletes it. Exits 0 when nothing is wrong (notes are
    allowed), 1 with a warning or a fault, 4 when a store does not answer.
    """
    from killswitch.doctor.findings import judge
    from killswitch.doctor.verdict import Severity, worst

    seen = _examine(context, *context.settings_and_faults(), node_gate)
    found = judge(seen)
    if context.wants_json:
        context.emit_json("doctor", _body(seen, found))
    else:
        _show(seen, found)
    if not all(one.store.answers for one in seen.stores):
        sys.exit(EXIT_STORE_UNAVAILABLE)
    if worst(found) >= Severity.WARNING:
        sys.exit(EXIT_ERROR)


def _examine(context: CommandContext, settings: Settings, faults: Sequence[str], node_gate: str | None) -> Examination:
    from killswitch.doctor.machine import ClockPair, examine_machine
    from killswitch.doctor.measurements import Examination

    clocks = ClockPair()
    own = settings.agent.in_cluster(settings.cluster)
    stores = tuple(_examine_store(context, settings.model_copy(update={"store": url})) for url in settings.stores)
    machine = examine_machine(
        clocks,
        gate=node_gate or own.gate,
        gate_asked_for=node_gate is not None,
        state_dir=own.state_dir,
    )
    return Examination(settings.timing.to_core(), settings.cluster, stores, machine, tuple(faults))


def _examine_store(context: CommandContext, settings: Settings) -> StoreExamined:
    """Examine one store; one that cannot even be opened is a finding like any other."""
    from killswitch.doctor.measurements import StoreExamined, StoreSeen
    from killswitch.doctor.probes import examine
    from killswitch.stores import StoreError
    from killswitch.stores.urls import without_secrets

    try:
        with context.cluster(settings) as cluster:
            return examine(cluster)
    except StoreError as error:
        return StoreExamined(
            StoreSeen(address=without_secrets(settings.stores[0]), answers=False, error=str(error)), None
        )


def _body(seen: Examination, found: Sequence[Finding]) -> dict[str, Any]:
    from killswitch.core.permit import worst_case
    from killswitch.doctor.verdict import worst

    bounds = worst_case(seen.timing)
    return {
        "cluster": seen.cluster,
        "verdict": worst(found).word,
        "findings": [finding.to_json() for finding in found],
        "stores": [
            {**asdict(one.store), "cluster": None if one.cluster is None else asdict(one.cluster)}
            for one in seen.stores
        ],
        "machine": asdict(seen.machine),
        "timing": asdict(seen.timing),
        "worst_case": {
            "reachable_ms": round(bounds.reachable_ms, 3),
            "unreachable_ms": round(bounds.unreachable_ms, 3),
        },
    }


def _show(seen: Examination, found: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    from killswitch.doctor.verdict import Severity

    several = len(seen.stores) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("about", no_wrap=True)
    if several:
        table.add_column("store", overflow="fold", max_width=20)
    table.add_column("finding", overflow="fold")
    for finding in found:
        word = finding.severity.word.upper() if finding.severity >= Severity.WARNING else finding.severity.word
        # As plain text: a sentence may quote what others wrote, and brackets would be taken for markup.
        cells = (word, finding.topic, *((finding.store or "-",) if several else ()), finding.sentence)
        table.add_row(*map(Text, cells))
    print_table(table)
    counts = {severity: sum(finding.severity is severity for finding in found) for severity in Severity}
    click.echo(
        f"cluster {seen.cluster}: {_count(counts[Severity.FAULT], 'fault')}, "
        f"{_count(counts[Severity.WARNING], 'warning')}, {_count(counts[Severity.NOTE], 'note')}"
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
