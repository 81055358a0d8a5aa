"""A streaming anomaly detector over the node's figures as a rule: advisory unless the settings say otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

from killswitch.risk.figures.anomaly import AnomalyDetector, AnomalyReading
from killswitch.risk.figures.anomaly_settings import AnomalySettings
from killswitch.risk.node_rule import NodeFinding, NodeLevel, NodeSnapshot

OBSERVE_EVERY_MS: Final = 1_000
"""One reading in this time: what a warm-up and a window are counted in."""

_NANOSECONDS_PER_MS = 1_000_000
_LEVELS: dict[str, NodeLevel] = {"advise": "warning", "reduce_only": "reduce_only", "freeze": "freeze"}


class NodeAnomalyRule:
    """Compares what the node holds, works and earns with what it did while the detector warmed up.

    The features: gross, net and working notional in USD, working orders, and the change of profit and loss since the
    reading before. A confirmed anomaly does what ``action`` says, one that is not confirmed yet nothing.

    Args:
        settings: of the detector.
        registry: where ``killswitch_node_anomaly_score`` is.
    """

    name = "anomaly"

    def __init__(self, settings: AnomalySettings, *, registry: CollectorRegistry) -> None:
        self._level = _LEVELS[settings.action]
        self._detector = AnomalyDetector(settings)
        self._observed_ns: int | None = None
        self._pnl_usd = 0.0
        self._reading: AnomalyReading | None = None
        self._score = Gauge(
            "killswitch_node_anomaly_score", "How unusual the node is, 0 to 1; -1 while that is not known.",
            registry=registry,
        )  # fmt: skip
        self._score.set(-1.0)

    def judge(self, snapshot: NodeSnapshot) -> Sequence[NodeFinding]:
        """Return the anomaly that stands, from the newest reading."""
        last_ns = self._observed_ns
        if last_ns is None or snapshot.now_ns - last_ns >= OBSERVE_EVERY_MS * _NANOSECONDS_PER_MS:
            self._observe(snapshot, first=last_ns is None)
        reading = self._reading
        if reading is None or not reading.confirmed:
            return ()
        return (
            NodeFinding(
                trigger="anomaly",
                level=self._level,
                reason=reading.sentence,
                value=reading.score,
                limit=reading.threshold,
                figures=_features(snapshot, snapshot.pnl_usd - self._pnl_usd),
            ),
        )

    def released(self) -> None:
        """A person has looked at an anomaly and released it: what comes now is usual, and is learned anew."""
        self._detector.relearn()
        self._reading = None
        self._score.set(-1.0)

    def summary(self) -> dict[str, Any]:
        """Return the newest reading for reports."""
        reading = self._reading
        if reading is None:
            return {"warming_up": True, "score": None}
        return {"warming_up": reading.warming_up, "score": reading.score}

    def _observe(self, snapshot: NodeSnapshot, *, first: bool) -> None:
        change_usd, self._pnl_usd = snapshot.pnl_usd - self._pnl_usd, snapshot.pnl_usd
        self._observed_ns = snapshot.now_ns
        if first:
            return  # there is no change yet
        self._reading = self._detector.observe(_features(snapshot, change_usd))
        score = self._reading.score
        self._score.set(-1.0 if score is None or self._reading.warming_up else score)


def _features(snapshot: NodeSnapshot, pnl_change_usd: float) -> dict[str, float]:
    return {
        "gross_usd": snapshot.gross_usd,
        "net_usd": snapshot.net_usd,
        "working_notional_usd": snapshot.working_notional_usd,
        "working_orders": float(snapshot.working_orders),
        "pnl_change_usd": pnl_change_usd,
    }
