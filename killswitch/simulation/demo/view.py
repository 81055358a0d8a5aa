"""Shows a demo: a live picture on a terminal, plain lines elsewhere, one JSON document where a program reads it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 120
REFRESHES_PER_SECOND = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one phase ended: what happened, or what did not, in one sentence."""

    phase: str
    ok: bool
    sentence: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {"phase": self.phase, "ok": self.ok, "sentence": self.sentence, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class NodePicture:
    """One node at this moment: what it last reported, what the venue sees of it, what its routers counted.

    Attributes:
        node: its name.
        agent: ``running`` or ``killed``.
        mode: mode in its last report, empty before the first.
        working: its orders in the venue's book.
        gross_usd: sum of its absolute positions in USD.
        pnl_usd: its profit in USD.
        sent: orders that its routers sent.
        refused: orders that were refused before they were sent.
    """

    node: str
    agent: str
    mode: str
    working: int
    gross_usd: float
    pnl_usd: float
    sent: int
    refused: int


@dataclass(frozen=True, slots=True)
class Picture:
    """The whole demo at this moment.

    Attributes:
        tape: where the tape stands, in words.
        tape_share: how much of it has been played, 0 to 1.
        prices_usd: last price of each symbol.
        nodes: the nodes.
        limits: hard levels of the coordinator's rules in USD, by name.
    """

    tape: str
    tape_share: float
    prices_usd: Mapping[str, float]
    nodes: Sequence[NodePicture]
    limits: Mapping[str, float]


class View(Protocol):
    """What a demo tells whoever watches it."""

    def phase(self, name: str, doing: str) -> None:
        """A phase begins."""

    def verdict(self, verdict: Verdict) -> None:
        """A phase has ended."""

    def picture(self, picture: Picture) -> None:
        """New figures."""

    def certificate(self, certificate: Mapping[str, Any]) -> None:
        """The certificate of the freeze."""

    def finish(self, document: Mapping[str, Any]) -> None:
        """The end, with the whole result. Nothing may be shown after it."""

    def close(self) -> None:
        """Give the terminal back. Safe to call twice."""


class PlainView:
    """One line for each thing that happens, as a log file or a pipe wants it."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self._console = Console(file=stream, width=PLAIN_WIDTH, no_color=True, highlight=False)
        self._began_s = time.monotonic()

    def phase(self, name: str, doing: str) -> None:
        """Print what begins."""
        self._line(f"{name}: {doing}")

    def verdict(self, verdict: Verdict) -> None:
        """Print how it ended."""
        self._line(f"{verdict.phase}: {'ok' if verdict.ok else 'FAILED'}: {verdict.sentence}")

    def picture(self, picture: Picture) -> None:
        """Say nothing: figures that move are of no use in a log."""

    def certificate(self, certificate: Mapping[str, Any]) -> None:
        """Print the table."""
        self._console.print(certificate_table(certificate))
        for note in certificate_notes(certificate):
            self._console.print(note, markup=False, soft_wrap=True)

    def finish(self, document: Mapping[str, Any]) -> None:
        """Print the sum of it."""
        for line in closing_lines(document):
            self._console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is held."""

    def _line(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._began_s:5.1f} s] {text}", markup=False, soft_wrap=True)


class JsonView(PlainView):
    """Plain lines on stderr, and on stdout nothing but one JSON document at the end."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        """Talk on ``stderr``, answer on ``stdout``."""
        super().__init__(stderr)
        self._stdout = stdout

    def finish(self, document: Mapping[str, Any]) -> None:
        """Print the document."""
        super().finish(document)
        self._stdout.write(json.dumps(document, indent=2) + "\n")
        self._stdout.flush()


class LiveView:
    """A picture that is drawn again in place: phases, tape, nodes."""

    def __init__(self, console: Console) -> None:
        """Begin to draw on the terminal."""
        self._console = console
        self._verdicts: list[Verdict] = []
        self._doing: tuple[str, Spinner] | None = None
        self._picture: Picture | None = None
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True
        )
        self._live.start()

    def phase(self, name: str, doing: str) -> None:
        """Show it beside a spinner."""
        self._doing = (name, Spinner("dots", Text(f"{name}: {doing}")))

    def verdict(self, verdict: Verdict) -> None:
        """Print it above the picture, to stay."""
        self._verdicts.append(verdict)
        self._doing = None
        self._live.console.print(_verdict_text(verdict))

    def picture(self, picture: Picture) -> None:
        """Show the newest figures from the next drawing on."""
        self._picture = picture

    def certificate(self, certificate: Mapping[str, Any]) -> None:
        """Print the table above the picture, to stay."""
        self._live.console.print(certificate_table(certificate))
        for note in certificate_notes(certificate):
            self._live.console.print(note, markup=False)

    def finish(self, document: Mapping[str, Any]) -> None:
        """Take the picture away and print the sum of it."""
        self.close()
        for line in closing_lines(document):
            self._console.print(line, markup=False)

    def close(self) -> None:
        """Stop drawing."""
        self._live.stop()

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._picture is not None:
            parts += [_tape_line(self._picture), _nodes_table(self._picture)]
        if self._doing is not None:
            parts.append(self._doing[1])
        return Group(*parts)


def make_view(output: str) -> View:
    """Return the view for this terminal or pipe; ``output`` is ``table`` or ``json``."""
    if output == "json":
        return JsonView(sys.stdout, sys.stderr)
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console)
    return PlainView(sys.stdout)


def certificate_table(certificate: Mapping[str, Any]) -> Table:
    """Return the certificate as a table, one line for each node."""
    table = Table(title=f"Certificate of the freeze of epoch {certificate['epoch']}", title_justify="left")
    table.add_column("node")
    table.add_column("state", no_wrap=True)
    for heading in ("gate closed after", "orders cancelled", "still open", "last sequence number"):
        table.add_column(heading, justify="right")
    colours = {"ACKED": "green", "PERMIT_EXPIRED": "yellow", "UNPROVEN": "red"}
    for line in certificate["nodes"]:
        after_ms, still_open, flat = line["gated_ms"], line["orders_open"], line["flat"]
        table.add_row(
            line["node"],
            Text(line["state"], style=colours.get(line["state"], "")),
            "not proven" if after_ms is None else f"{after_ms:,.0f} ms",
            str(line["orders_cancelled"]),
            "unknown" if still_open is None else f"{still_open}{'' if flat else ' (not proven)'}",
            "unknown" if line["last_sequence"] is None else str(line["last_sequence"]),
        )
    return table


def certificate_notes(certificate: Mapping[str, Any]) -> list[str]:
    """Return the sentence below the table, and one for each node of which something is left to say."""
    stopped = "stopped: yes" if certificate["stopped"] else "stopped: NOT PROVEN"
    flat = "flat (no working order left): yes" if certificate["flat"] else "flat (no working order left): not proven"
    after_ms = certificate.get("stopped_after_ms")
    took = "" if after_ms is None else f", the last gate {after_ms:,.0f} ms after the freeze began"
    notes = [f"{line['node']}: {line['note']}" for line in certificate["nodes"] if line["note"]]
    return [f"{stopped}{took}; {flat}", *notes]


def closing_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the last lines of a demo: what the venue saw, and what did not happen."""
    orders = document["orders"]
    lines = [
        f"orders: {orders['sent']} sent, {orders['refused']} refused before sending, "
        f"{orders['cancelled']} cancelled by the freeze",
        f"the venue's own record: {_known(orders['open_after_freeze'])} open after the freeze, "
        f"{_known(orders['accepted_by_venue_after_certificate'])} accepted between certificate and release",
    ]
    faults = document["faults"]
    if not faults:
        return [*lines, f"All of it happened, in {document['seconds']:.1f} s."]
    lines += [f"did not happen: {fault}" for fault in faults]
    return [*lines, f"The logs of all processes are in {document['logs']}"] if document["logs"] else lines


def _known(count: int | None) -> str:
    return "unknown" if count is None else str(count)


def _verdict_text(verdict: Verdict) -> Text:
    mark = ("✓", "green") if verdict.ok else ("✗", "bold red")
    return Text.assemble(mark, f" {verdict.phase}: {verdict.sentence} ", (f"({verdict.seconds:.1f} s)", "dim"))


def _tape_line(picture: Picture) -> RenderableType:
    prices = "  ".join(f"{symbol} {price:,.2f}" for symbol, price in picture.prices_usd.items())
    grid = Table.grid(padding=(0, 2))
    grid.add_row(ProgressBar(total=1.0, completed=picture.tape_share, width=30), Text(picture.tape), Text(prices))
    return grid


def _nodes_table(picture: Picture) -> Table:
    gross = sum(node.gross_usd for node in picture.nodes)
    pnl = sum(node.pnl_usd for node in picture.nodes)
    limits = ", ".join(f"{name} {usd:,.0f}" for name, usd in picture.limits.items())
    table = Table(
        caption=f"cluster: gross {gross:,.0f} USD, P&L {pnl:,.0f} USD; freezes at: {limits} USD",
        caption_justify="left",
    )
    for heading in ("node", "agent", "mode"):
        table.add_column(heading)
    for heading in ("working at venue", "gross USD", "P&L USD", "sent", "refused"):
        table.add_column(heading, justify="right")
    for node in picture.nodes:
        table.add_row(
            node.node,
            Text(node.agent, style="" if node.agent == "running" else "bold red"),
            Text(node.mode, style="red" if node.mode == "FROZEN" else "green"),
            str(node.working),
            f"{node.gross_usd:,.0f}",
            f"{node.pnl_usd:,.0f}",
            str(node.sent),
            str(node.refused),
        )
    return table
