"""What a demo found out, and the document that says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killswitch.simulation.demo.cluster import DemoCluster, DemoOptions
from killswitch.simulation.demo.evidence import refused_attempts
from killswitch.simulation.demo.view import Verdict

SCHEMA = "killswitch.demo/1"


def _no_figures() -> dict[str, Any]:
    return {"gross": None, "net": None, "pnl": None, "drawdown": None}


@dataclass(slots=True)
class DemoResult:
    """Filled in phase by phase; ``None`` and empty stand for what was not reached.

    Attributes:
        verdicts: how each phase ended.
        faults: a sentence for each thing that did not happen as it should.
        agent_killed: True once the agent to be killed has been killed.
        freeze: the freeze with its epoch, as JSON values.
        certificate: the newest certificate, as JSON values.
        figures: what the cluster held while it was frozen, in USD.
        open_after_freeze: orders at the venue after the certificate.
        accepted_after_certificate: orders that the venue accepted between certificate and release.
        released_at: when it was released, as the history has it.
        history_verified: True when the chain of the history holds.
        venue_record: the venue's last summary.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    agent_killed: bool = False
    freeze: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    figures: dict[str, Any] = field(default_factory=_no_figures)
    open_after_freeze: int | None = None
    accepted_after_certificate: int | None = None
    released_at: str | None = None
    history_verified: bool = False
    venue_record: dict[str, Any] = field(default_factory=dict)

    def document(
        self,
        options: DemoOptions,
        setup: DemoCluster,
        stats: Mapping[str, Mapping[str, Any]],
        *,
        seconds: float,
        logs: Path,
    ) -> dict[str, Any]:
        """Put together what happened: schema ``killswitch.demo/1``. Money is in USD.

        Args:
            options: what was asked for.
            setup: the cluster.
            stats: counters of each router.
            seconds: how long it took.
            logs: where the logs are; told when there are faults.
        """
        return {
            "schema": SCHEMA,
            "ok": not self.faults,
            "seed": options.seed,
            "tape": str(options.bars) if options.bars else "synthetic",
            "killed_agent": options.kill_agent,
            "nodes": [
                self._node_document(
                    node,
                    {name: stats[name] for name in setup.routers(node)},
                    killed=self.agent_killed and node == options.kill_agent,
                )
                for node in setup.nodes
            ],
            "freeze": self.freeze,
            "certificate": self.certificate,
            "orders": {
                "sent": sum(int(body.get("sent", 0)) for body in stats.values()),
                "refused": sum(refused_attempts(body) for body in stats.values()),
                "cancelled": sum(int(line["orders_cancelled"]) for line in (self.certificate or {}).get("nodes", ())),
                "open_after_freeze": self.open_after_freeze,
                "accepted_by_venue_after_certificate": self.accepted_after_certificate,
            },
            "cluster": self.figures,
            "released": self.released_at is not None,
            "history_verified": self.history_verified,
            "phases": [verdict.to_json() for verdict in self.verdicts],
            "faults": list(self.faults),
            "seconds": round(seconds, 3),
            "logs": str(logs) if self.faults else None,
        }

    def _node_document(self, node: str, stats: Mapping[str, Mapping[str, Any]], *, killed: bool) -> dict[str, Any]:
        lines = (self.certificate or {}).get("nodes", ())
        proof: Mapping[str, Any] = next((line for line in lines if line["node"] == node), {})
        return {
            "node": node,
            "agent": "killed" if killed else "running",
            **{
                name: proof.get(name)
                for name in ("state", "gated_ms", "orders_cancelled", "orders_open", "last_sequence", "flat")
            },
            "routers": [
                {
                    "router": name,
                    "sent": counters.get("sent"),
                    "refused": counters.get("refused"),
                    "cancelled": counters.get("cancelled"),
                    "fills": counters.get("fills"),
                    "last_sequence": counters.get("last_sequence"),
                    "last_sequence_at_venue": self.venue_record.get("owners", {}).get(name, {}).get("last_sequence"),
                }
                for name, counters in stats.items()
            ],
        }
