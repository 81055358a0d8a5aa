"""Value at risk and expected shortfall of what the node holds, as a rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from killswitch.clock import NowNs
from killswitch.risk.figures.value_at_risk import ValueAtRiskFigures, ValueAtRiskMonitor
from killswitch.risk.figures.value_at_risk_settings import ValueAtRiskSettings
from killswitch.risk.node_rule import NodeFinding, NodeSnapshot


class NodeValueAtRiskRule:
    """Samples the marks that the node's routers report, and holds the figures of what is held against the levels.

    A mark counts as new at every judgement: whether a router repeats an old one cannot be seen here. One that has never
    moved makes the figures untrusted.

    Args:
        settings: history, confidence, levels.
        clock: deadline clock.
        registry: where ``killswitch_node_value_at_risk_usd`` is.
    """

    name = "value_at_risk"

    def __init__(self, settings: ValueAtRiskSettings, *, clock: NowNs, registry: CollectorRegistry) -> None:
        self._monitor = ValueAtRiskMonitor(settings, clock=clock)
        self._figures: ValueAtRiskFigures | None = None
        self._gauge = Gauge(
            "killswitch_node_value_at_risk_usd",
            "Loss of one sampling step that is not passed with the confidence set; NaN while that is not known.",
            ["figure", "method"],
            registry=registry,
        )

    def set_settings(self, settings: ValueAtRiskSettings) -> None:
        """Hold the figures against other levels from now on.

        Raises:
            ValueError: as :meth:`ValueAtRiskMonitor.set_settings`.
        """
        self._monitor.set_settings(settings)

    def judge(self, snapshot: NodeSnapshot) -> Sequence[NodeFinding]:
        """Return one finding where the figures have reached a level, or are not to be trusted."""
        for symbol, held in snapshot.holdings.items():
            self._monitor.on_price(symbol, held.mark_price_usd)
        figures = self._monitor.figures({symbol: held.value_usd for symbol, held in snapshot.holdings.items()})
        self._figures = figures
        self._show(figures)
        level = self._monitor.level(figures)
        if level is None:
            return ()
        settings = self._monitor.settings
        judged_usd = self._monitor.judged_usd(figures)
        limit_usd = settings.warning_usd if level == "warning" else settings.hard_usd
        return (
            NodeFinding(
                trigger="value_at_risk",
                level=level,
                reason=figures.sentence,
                value=judged_usd if figures.trusted and math.isfinite(judged_usd) else None,
                limit=limit_usd,
                figures=_named(figures),
            ),
        )

    def summary(self) -> dict[str, Any]:
        """Return the newest figures for reports."""
        figures = self._figures
        return {"trusted": False} if figures is None else {"trusted": figures.trusted, **_named(figures)}

    def _show(self, figures: ValueAtRiskFigures) -> None:
        for name, value in _named(figures).items():
            method, _, figure = name.removesuffix("_usd").partition("_")
            self._gauge.labels(figure=figure, method=method).set(value if figures.trusted else math.nan)


def _named(figures: ValueAtRiskFigures) -> dict[str, float]:
    return {
        "historical_var_usd": figures.historical_var_usd,
        "historical_es_usd": figures.historical_es_usd,
        "parametric_var_usd": figures.parametric_var_usd,
        "parametric_es_usd": figures.parametric_es_usd,
    }
