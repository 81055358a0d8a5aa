"""Repeated automated executions: a strategy that has been filled so often without a person is disabled, until one acts.

RTS 6 Art. 15(3): after a number of repeated executions that was set beforehand the system is disabled by itself until
a designated member of staff enables it again. Whose order it is stands here too, remembered with its reservation: a
venue tells a fill by the order's id and knows no strategy.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.order_inputs import refused, text_or_none
from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.pretrade.pretrade_settings import RepeatedExecutionSettings
from killswitch.risk.refusal import OrderRefused
from killswitch.safe_log import say

MAX_STRATEGIES = 10_000
MAX_REMEMBERED = 10_000
"""Newest orders that were filled or are over of which the strategy is remembered, for fills that come late."""


class RepeatedExecutions:
    """Counts fills of each strategy and refuses its orders from the limit on. Thread-safe.

    Orders and fills that name no strategy are one strategy together, ``""``. Time alone never enables a strategy, and
    no change of settings does: a strategy that is disabled stays so under a higher limit and under none.

    Args:
        settings: limit and staff; with ``None`` nothing is counted, and what is disabled stays so.
    """

    name = "repeated_executions"

    def __init__(self, settings: RepeatedExecutionSettings | None) -> None:
        self._lock = threading.Lock()
        self._fills: dict[str, int] = {}
        self._most = math.inf
        self._staff: frozenset[str] = frozenset()
        # Disabled by an earlier, lower limit: strategy -> that limit. Replaced as a whole, never changed.
        self._held: Mapping[str, float] = {}
        self.set_settings(settings)

    def set_settings(self, settings: RepeatedExecutionSettings | None) -> None:
        """Count up to another limit; counts stay, and so does everything that is disabled.

        With a lower limit, strategies that have had as many executions already are disabled now. Without settings the
        staff is who it was.
        """
        with self._lock:
            disabled = {name: self._limit_of(name) for name, fills in self._fills.items() if self._is_over(name, fills)}
            if settings is None:
                self._most = math.inf
            else:
                self._most, self._staff = settings.max_executions, frozenset(settings.designated_staff)
            over = {name: fills for name, fills in self._fills.items() if fills >= self._most}
            self._held = {name: limit for name, limit in disabled.items() if name not in over}
        for name, fills in over.items():
            if name not in disabled:
                say("critical", "strategy disabled", strategy=name, executions=fills)

    def _is_over(self, strategy: str, fills: int) -> bool:
        return fills >= self._most or strategy in self._held

    def _limit_of(self, strategy: str) -> float:
        return self._held.get(strategy, self._most)

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse an order of a strategy that is disabled, and of one too many to be counted."""
        fills = self._fills.get(order.strategy)
        if fills is None:
            if len(self._fills) < MAX_STRATEGIES or self._most == math.inf:
                return None
            sentence = f"{order.symbol}: {MAX_STRATEGIES} strategies are counted, and no more can be"
            most = float(MAX_STRATEGIES)
            return OrderRefused("table_full", most, most + 1, order.symbol, sentence, "executions")
        if fills < self._most and (not self._held or order.strategy not in self._held):
            return None
        limit = self._limit_of(order.strategy)
        sentence = (
            f"{order.symbol}: strategy {order.strategy!r} has had {fills} executions without a person, and "
            f"{limit:.0f} are allowed; it is disabled until a named person enables it"
        )
        return OrderRefused("repeated_execution", float(limit), float(fills), order.symbol, sentence, "executions")

    def on_fill(self, strategy: str) -> bool:
        """Count one execution. A fill is a fact: it counts beyond the limit too.

        Returns:
            True when it has disabled the strategy.
        """
        with self._lock:
            if self._most == math.inf:
                return False
            fills = self._fills.get(strategy, 0) + 1
            if fills > 1 or len(self._fills) < MAX_STRATEGIES:
                self._fills[strategy] = fills
            disables = fills == self._most and strategy not in self._held
        if disables:
            say("critical", "strategy disabled", strategy=strategy, executions=fills)
        return disables

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
            fills = self._fills.get(strategy, 0)
            was_disabled = self._is_over(strategy, fills)
            self._held = {name: limit for name, limit in self._held.items() if name != strategy}
            self._fills.pop(strategy, None)
        say("warning", "strategy enabled", strategy=strategy, person=person, reason=reason, executions=fills)
        return was_disabled

    def disabled(self) -> list[str]:
        """The strategies that are disabled now, by name."""
        with self._lock:
            return sorted(strategy for strategy, fills in self._fills.items() if self._is_over(strategy, fills))

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

    def disabled_to_json(self) -> dict[str, int]:
        """Return what is disabled and by which limit: a restart with a higher one must not enable it either."""
        with self._lock:
            over = [strategy for strategy, fills in self._fills.items() if self._is_over(strategy, fills)]
            return {strategy: int(self._limit_of(strategy)) for strategy in over}

    def restore_disabled(self, data: Mapping[str, Any]) -> None:
        """Take over strategies that are disabled; call it after :meth:`restore`.

        Raises:
            ValueError: a limit is no whole number above 0, or there are too many.
        """
        for strategy, limit in data.items():
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise ValueError(f"strategy {strategy!r} is disabled from {limit!r} executions on")
        with self._lock:
            if len(self._fills.keys() | data.keys()) > MAX_STRATEGIES:
                raise ValueError(f"{len(data)} disabled strategies are more than can be kept")
            for strategy, limit in data.items():
                self._fills[strategy] = max(limit, self._fills.get(strategy, 0))
            held = {strategy: limit for strategy, limit in data.items() if self._fills[strategy] < self._most}
            self._held = {**held, **self._held}


class OrderStrategies:
    """The strategy of every order that works, and of the newest that were. Every step is atomic by itself.

    Args:
        monitor: which keeps the strategy of an order with its reservation.
        most: orders remembered that work no more.
    """

    def __init__(self, monitor: RuntimeRiskMonitor, *, most: int = MAX_REMEMBERED) -> None:
        self._monitor = monitor
        self._most = most
        self._were: OrderedDict[str, str] = OrderedDict()

    def of(self, client_order_id: object) -> str | None:
        """The strategy that an order was admitted for, ``""`` for none; ``None`` when it is not known."""
        if not isinstance(client_order_id, str):
            return None
        own = self._monitor.strategy_of(client_order_id)
        return self._were.get(client_order_id) if own is None else own

    def executed(self, client_order_id: object, told: object) -> tuple[str, ...]:
        """The strategies that a fill counts for: the order's own, and another one if the fill names it.

        Call it before the monitor is told the fill: an order may be over with it.

        Args:
            client_order_id: the order's id, ``None`` when the fill has none.
            told: the strategy that the fill names, ``None`` or ``""`` when it names none.
        """
        own, other = self.remember(text_or_none(client_order_id)) or "", str(told or "")
        return (own, other) if own and other and own != other else (own or other,)

    def remember(self, client_order_id: object) -> str | None:
        """Know the strategy of an order also when it is over, which it will be in a moment; return it."""
        own = self.of(client_order_id)
        if own is not None and isinstance(client_order_id, str):
            self._were[client_order_id] = own
            if len(self._were) > self._most:
                self._were.popitem(last=False)
        return own


def another_strategy(symbol: str, client_order_id: str, own: str, told: str) -> OrderRefused:
    """The refusal of an amendment that names another strategy than its order has."""
    whose = f"of the strategy {own!r}" if own else "of no strategy"
    sentence = f"{symbol}: the order {client_order_id} is {whose}, not of {told!r}; amend it as what it is"
    return refused("bad_input", symbol, sentence)
