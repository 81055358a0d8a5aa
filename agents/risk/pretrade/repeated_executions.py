"""Repeated automated executions: a strategy that has been filled so often without a person is disabled, until one acts.

RTS 6 Art. 15(3): after a number of repeated executions that was set beforehand the system is disabled by itself until
a designated member of staff enables it again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from agents.risk.limits import OrderRefused
from agents.risk.local_freeze import say
from agents.risk.pretrade.order import PretradeOrder
from agents.risk.pretrade_settings import RepeatedExecutionSettings

MAX_STRATEGIES = 10_000


class RepeatedExecutions:
    """Counts fills of each strategy and refuses its orders from the limit on. Thread-safe.

    Orders and fills that name no strategy are one strategy together, ``""``. Time alone never enables a strategy.
    """

    name = "repeated_executions"

    def __init__(self, settings: RepeatedExecutionSettings) -> None:
        self._most = settings.max_executions
        self._staff = frozenset(settings.designated_staff)
        self._lock = threading.Lock()
        self._fills: dict[str, int] = {}

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse an order of a strategy that is disabled, and of one too many to be counted."""
        fills = self._fills.get(order.strategy)
        if fills is None:
            if len(self._fills) < MAX_STRATEGIES:
                return None
            sentence = f"{order.symbol}: {MAX_STRATEGIES} strategies are counted, and no more can be"
            most = float(MAX_STRATEGIES)
            return OrderRefused("table_full", most, most + 1, order.symbol, sentence, "executions")
        if fills < self._most:
            return None
        sentence = (
            f"{order.symbol}: strategy {order.strategy!r} has had {fills} executions without a person, and "
            f"{self._most} are allowed; it is disabled until a named person enables it"
        )
        return OrderRefused("repeated_execution", float(self._most), float(fills), order.symbol, sentence, "executions")

    def on_fill(self, strategy: str) -> None:
        """Count one execution. A fill is a fact: it counts beyond the limit too."""
        with self._lock:
            fills = self._fills.get(strategy, 0) + 1
            if fills > 1 or len(self._fills) < MAX_STRATEGIES:
                self._fills[strategy] = fills
        if fills == self._most:
            say("critical", "strategy disabled", strategy=strategy, executions=fills)

    def enable(self, strategy: str, person: str, reason: str) -> bool:
        """Start counting from nothing: a person has looked at what the strategy did.

        Args:
            strategy: which one.
            person: who enables it; one of the designated staff where the settings name them.
            reason: why.

        Returns:
            True when it was disabled.

        Raises:
            ValueError: no person or no reason is given, or the person is not designated; nothing changes.
        """
        if not person.strip() or not reason.strip():
            raise ValueError("enabling a strategy needs a named person and a reason; it stays as it is")
        if self._staff and person not in self._staff:
            raise ValueError(f"{person!r} is not designated to enable strategies; {strategy!r} stays as it is")
        with self._lock:
            fills = self._fills.pop(strategy, 0)
        say("warning", "strategy enabled", strategy=strategy, person=person, reason=reason, executions=fills)
        return fills >= self._most

    def disabled(self) -> list[str]:
        """The strategies that are disabled now, by name."""
        with self._lock:
            return sorted(strategy for strategy, fills in self._fills.items() if fills >= self._most)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values: a restart must not enable a strategy."""
        with self._lock:
            return dict(self._fills)

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over counts; where both know a strategy the larger one stands.

        Raises:
            ValueError: a count is no whole number of at least 0.
        """
        for strategy, fills in data.items():
            if isinstance(fills, bool) or not isinstance(fills, int) or fills < 0:
                raise ValueError(f"strategy {strategy!r} has {fills!r} executions")
        with self._lock:
            for strategy, fills in data.items():
                self._fills[str(strategy)] = max(fills, self._fills.get(str(strategy), 0))
