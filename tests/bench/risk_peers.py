"""The risk checks beside other people's: pybreaker's closed circuit, the risk engine of NautilusTrader where installed.

Both are optional: ``pip install 'killswitch-cluster[bench]'`` brings pybreaker, ``pip install nautilus_trader`` the
other. What each does in the time that is measured differs, and is said here: pybreaker calls a function through a
closed circuit;
NautilusTrader's compiled engine judges a submit command (trading state, rate, price, quantity, value) and passes it on.
Neither knows working orders, reservations, several processes, or the health of a price. Figures are for reading.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
from tests.bench.pretrade_check import make
from tests.bench.timed_calls import no_collection, percentile, print_rows

CALLS = 20_000
ROUNDS = 5
WARM_UP = 1_000
SYMBOLS = 100

Row = dict[str, Any]
Check = Callable[[int], bool]


def run(calls: int = CALLS, rounds: int = ROUNDS) -> list[Row]:
    """Measure and return one row per check of ours, each beside the other's in the same loop, in microseconds."""
    return [*_beside_pybreaker(calls, rounds), *_beside_nautilus(calls, rounds)]


def _beside_pybreaker(calls: int, rounds: int) -> list[Row]:
    breaker = CircuitBreaker(registry=CollectorRegistry())
    name = "circuit breaker: a call while it is safe"

    def ours(_number: int) -> bool:
        return breaker.allows() and _nothing()

    try:
        import pybreaker
    except ImportError:
        return [_alone(name, "pybreaker", ours, calls)]
    closed = pybreaker.CircuitBreaker()
    version = importlib.metadata.version("pybreaker")
    return [_row(name, f"pybreaker {version}: closed call", (ours, lambda _: closed.call(_nothing)), calls, rounds)]


def _beside_nautilus(calls: int, rounds: int) -> list[Row]:
    names = [f"S{number:05d}USDT" for number in range(SYMBOLS)]
    plain, _, controls = make(names)
    explain, admit, release = controls.explain_order, controls.admit, controls.release

    def alone(number: int) -> bool:
        return plain.check_before_order(names[number % SYMBOLS], "buy", 0.1, 1_000.0)

    def every_control(number: int) -> bool:
        return explain(names[number % SYMBOLS], "buy", 0.1, 1_000.0, strategy="mm") is None

    def counted(number: int) -> bool:
        passed = admit("o", names[number % SYMBOLS], "buy", 0.1, 1_000.0, strategy="mm") is None
        release("o")
        return passed

    kinds: dict[str, Check] = {
        "RuntimeRiskMonitor alone, 100 symbols held": alone,
        "every control, 100 symbols held": every_control,
        "every control, counted, reserved, released": counted,
    }
    try:
        theirs, version = _nautilus_check()
    except ImportError:
        return [_alone(name, "nautilus_trader", ours, calls) for name, ours in kinds.items()]
    beside = f"NautilusTrader {version}: RiskEngine.execute of a submit command"
    return [_row(name, beside, (ours, theirs), calls, rounds) for name, ours in kinds.items()]


def _nautilus_check() -> tuple[Check, str]:
    """A risk engine with one instrument and a limit of value, behind it an endpoint that only counts."""
    from nautilus_trader.cache.cache import Cache
    from nautilus_trader.common.component import MessageBus, TestClock
    from nautilus_trader.common.factories import OrderFactory
    from nautilus_trader.core.uuid import UUID4
    from nautilus_trader.execution.messages import SubmitOrder
    from nautilus_trader.model.enums import OrderSide
    from nautilus_trader.model.identifiers import StrategyId, TraderId
    from nautilus_trader.portfolio.portfolio import Portfolio
    from nautilus_trader.risk.config import RiskEngineConfig
    from nautilus_trader.risk.engine import RiskEngine
    from nautilus_trader.test_kit.providers import TestInstrumentProvider

    trader, strategy, clock, cache = TraderId("BENCH-001"), StrategyId("MM-001"), TestClock(), Cache()
    bus = MessageBus(trader_id=trader, clock=clock)
    passed: list[int] = [0]

    def count(_command: object) -> None:
        passed[0] += 1

    def fail(event: object) -> None:
        raise AssertionError(f"the bench must measure orders that pass: {event}")

    bus.register(endpoint="ExecEngine.execute", handler=count)
    bus.register(endpoint="ExecEngine.process", handler=fail)
    rate = "1000000/00:00:01"
    engine = RiskEngine(
        portfolio=Portfolio(msgbus=bus, cache=cache, clock=clock), msgbus=bus, cache=cache, clock=clock,
        config=RiskEngineConfig(max_order_submit_rate=rate, max_order_modify_rate=rate),
    )  # fmt: skip
    instrument = TestInstrumentProvider.btcusdt_binance()
    cache.add_instrument(instrument)
    engine.set_max_notional_per_order(instrument.id, 10**9)
    factory = OrderFactory(trader_id=trader, strategy_id=strategy, clock=clock)
    order = factory.limit(instrument.id, OrderSide.BUY, instrument.make_qty(0.1), instrument.make_price(1_000.0))
    command = SubmitOrder(
        trader_id=trader, strategy_id=strategy, position_id=None, order=order, command_id=UUID4(), ts_init=0
    )

    def check(_number: int) -> bool:
        before = passed[0]
        engine.execute(command)
        return passed[0] > before

    return check, importlib.metadata.version("nautilus_trader")


def _nothing() -> bool:
    return True


def _alone(name: str, package: str, ours: Check, calls: int) -> Row:
    """A row without the other, which is not installed."""
    (took,) = _timed((ours,), calls)
    return {
        "name": name,
        "unit": "us",
        "baseline_name": f"{package} (not installed)",
        "p50": round(percentile(took, 50) / 1_000, 3),
        "p99": round(percentile(took, 99) / 1_000, 3),
    }


def _row(name: str, beside: str, pair: tuple[Check, Check], calls: int, rounds: int) -> Row:
    """Ours and theirs in turn, so that both meet the same noise; of several runs the median counts."""
    runs = [_timed(pair, calls) for _ in range(rounds)]
    row: Row = {"name": name, "unit": "us", "baseline_name": beside}
    for figure, per_cent in (("p50", 50), ("p99", 99)):
        own, other = (sorted(percentile(one[index], per_cent) for one in runs)[len(runs) // 2] for index in range(2))
        row[figure] = round(own / 1_000, 3)
        row[f"baseline_{figure}"] = round(other / 1_000, 3)
        row[f"ratio_{figure}"] = round(own / other, 2)
    return row


def _timed(checks: tuple[Check, ...], calls: int) -> list[list[int]]:
    assert all(check(0) for check in checks), "the bench must measure calls that pass"
    took: list[list[int]] = [[] for _ in checks]
    timer = time.perf_counter_ns
    with no_collection():
        for number in range(WARM_UP + calls):
            for index, check in enumerate(checks):
                before = timer()
                check(number)
                took[index].append(timer() - before)
    return [one[WARM_UP:] for one in took]


def main() -> None:
    """Print the rows."""
    print_rows(run())


if __name__ == "__main__":
    main()
