"""What a demo is asked to show, and the cluster for it: names, files, levels of rules, the command of each process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from killswitch.simulation.tape import BARS_SYMBOL, DEFAULT_PRICES_USD, BadTape, bars_from_csv

CLUSTER = "demo"
COORDINATORS = ("c1", "c2")
INVENTORY_MAX_USD = 24_000.0
"""Most that a router holds in one symbol; with it the rules' levels are worked out."""

DRAWDOWN_HARD_USD_PER_ROUTER = 500.0
DRAWDOWN_WARNING_SHARE = 0.5
LIMIT_HEADROOM = 2.0
EDGE_FREEZE_BPS = 1.0
GROSS_WARNING_SHARE = 0.9
GROSS_HARD_SHARE = 1.2
"""Above what all routers together may hold: a backstop, so that one rule trips and not two at the same instant."""

NODE_DRAWDOWN_HARD_RATIO = 0.4
EQUITY_SHARE = 1.0
"""Equity of a node in terms of all that its routers may hold: a node's account is never leveraged."""

NODES_MAX = 20
ROUTERS_MAX = 50
SPEED_MIN, SPEED_MAX = 0.1, 5.0
"""Faster than this the fall is over before routers that quote ten times a second have lost enough for a rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to show.

    Attributes:
        nodes: trading nodes, each with an agent.
        routers: order routers on each node.
        bars: one-minute bars to play instead of the synthetic flash crash.
        seed: of tape, noise and quotes.
        speed: how much faster than normal the tape plays.
        kill_agent: node whose agent is killed before the crash.
        output: ``json`` prints one document, ``table`` is for people.
    """

    nodes: int = 3
    routers: int = 2
    bars: Path | None = None
    seed: int = 1
    speed: float = 1.0
    kill_agent: str | None = None
    output: Literal["table", "json"] = "table"


def option_faults(options: DemoOptions) -> list[str]:
    """Return one sentence for each option that cannot be; an empty list when all can."""
    faults = []
    if not 1 <= options.nodes <= NODES_MAX:
        faults.append(f"--nodes is {options.nodes}; it must be between 1 and {NODES_MAX}")
    if not 1 <= options.routers <= ROUTERS_MAX:
        faults.append(f"--routers is {options.routers}; it must be between 1 and {ROUTERS_MAX}")
    if not SPEED_MIN <= options.speed <= SPEED_MAX:
        faults.append(f"--speed is {options.speed}; it must be between {SPEED_MIN:g} and {SPEED_MAX:g}")
    if options.kill_agent is not None:
        named = re.fullmatch(r"n([1-9][0-9]*)", options.kill_agent)
        if named is None or int(named[1]) > options.nodes:
            faults.append(f"--kill-agent is {options.kill_agent!r}; the nodes are n1 to n{options.nodes}")
        elif options.nodes == 1:
            faults.append("--kill-agent needs a second node: with no other one nobody trades into the crash")
    if options.bars is not None:
        try:
            bars_from_csv(options.bars)
        except OSError as error:
            faults.append(f"--bars: {options.bars} cannot be read: {error.strerror or error}")
        except BadTape as error:
            faults.append(f"--bars: {error}")
    return faults


class DemoCluster:
    """Says how everything is called and started; starts nothing.

    Args:
        options: what is shown.
        folder: of all files.

    Attributes:
        nodes: names of the trading nodes.
        symbols: what is traded.
        limits: hard levels of the coordinator's rules in USD: a loss that only a crash brings, and more than all
            routers may hold together.
    """

    def __init__(self, options: DemoOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self.nodes = [f"n{number}" for number in range(1, options.nodes + 1)]
        self.symbols = (BARS_SYMBOL,) if options.bars else tuple(DEFAULT_PRICES_USD)
        routers = options.nodes * options.routers
        room_usd = routers * INVENTORY_MAX_USD * len(self.symbols)
        self.limits = {
            "drawdown": routers * DRAWDOWN_HARD_USD_PER_ROUTER,
            "gross_notional": room_usd * GROSS_HARD_SHARE,
        }

    @property
    def store_folder(self) -> Path:
        """Where etcd keeps its data."""
        return self._folder / "etcd"

    def routers(self, node: str | None = None) -> list[str]:
        """Names of the order routers of one node, or of all."""
        nodes = self.nodes if node is None else [node]
        return [f"{name}-r{number}" for name in nodes for number in range(1, self._options.routers + 1)]

    def agent(self, node: str) -> str:
        """Name of a node's agent among the processes."""
        return f"agent-{node}"

    def stats(self, router: str) -> Path:
        """File into which a router writes its counters."""
        return self._folder / f"{router}.json"

    def write_config(self) -> None:
        """Write the configuration file with the rules' levels."""
        drawdown, gross = self.limits["drawdown"], self.limits["gross_notional"]
        rules = {
            "drawdown": {"warning_usd": drawdown * DRAWDOWN_WARNING_SHARE, "hard_usd": drawdown},
            "gross_notional": {"warning_usd": gross / GROSS_HARD_SHARE * GROSS_WARNING_SHARE, "hard_usd": gross},
        }
        settings = {"agent": {"risk_limits": str(self._risk_limits)}, "coordinator": {"rules": rules}}
        self._config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        self._risk_limits.write_text(yaml.safe_dump(self._limits_of_a_node(), sort_keys=False), encoding="utf-8")

    def _limits_of_a_node(self) -> dict[str, Any]:
        """The limits of every agent and every router, wide enough that the coordinator's rules speak first."""
        room_usd = INVENTORY_MAX_USD * len(self.symbols)
        return {
            # A node warns at half of what has the coordinator freeze. It holds its positions through the whole fall,
            # frozen: a hard level nearer than this would trip as well, and the demo is to show one cause.
            "initial_balance_usd": room_usd * self._options.routers * EQUITY_SHARE,
            "drawdown_warning": DRAWDOWN_HARD_USD_PER_ROUTER * DRAWDOWN_WARNING_SHARE / room_usd,
            "max_daily_drawdown": NODE_DRAWDOWN_HARD_RATIO,
            "orders": {
                "max_inventory_usd_per_symbol": INVENTORY_MAX_USD * LIMIT_HEADROOM,
                "max_total_notional_usd": room_usd * LIMIT_HEADROOM * self._options.routers,
                "edge_freeze_threshold_bps": EDGE_FREEZE_BPS,
            },
            "pretrade": {
                "permitted_symbols": list(self.symbols),
                "order_size": {"max_value_usd": INVENTORY_MAX_USD / 4},
                "input_health": {"max_age_ms": 5_000},
                "price_collar": {"max_deviation_bps": 500.0},
                "throttle": {"orders_per_s": 100, "symbol_orders_per_s": 50},
                "duplicates": {"max_same_orders": 10, "window_ms": 1_000},
                "working_orders": {"max_total": 100},
                "control_budget_ms": 5_000.0,  # a machine that is busy elsewhere is no fault of a control
            },
        }

    def command(self, store_url: str, *arguments: str, output: str = "table") -> list[str]:
        """Arguments of the ``killswitch`` command."""
        connection = ["--config", str(self._config), "--store", store_url, "--cluster", CLUSTER]
        return [*connection, "-o", output, *arguments]

    def coordinator_command(self, store_url: str, coordinator: str, http_port: int) -> list[str]:
        """Arguments of the ``killswitch`` command that run a coordinator."""
        return self.command(store_url, "coordinator", "run", "--id", coordinator, "--http-port", str(http_port))

    def agent_command(self, store_url: str, node: str, http_port: int) -> list[str]:
        """Arguments of the ``killswitch`` command that run a node's agent."""
        return self.command(
            store_url,
            *("agent", "run", "--node", node, "--gate", str(self._gate(node)), "--link", str(self._link(node))),
            *("--state-dir", str(self._folder / f"{node}-state"), "--http-port", str(http_port)),
        )

    def venue_arguments(self) -> list[str]:
        """Arguments of the simulated venue."""
        arguments = ["--record", str(self._folder / "venue.jsonl"), "--seed", str(self._options.seed)]
        arguments += ["--speed", str(self._options.speed)]
        if self._options.bars is not None:
            arguments += ["--bars", str(self._options.bars.resolve())]
        return arguments

    def router_arguments(self, venue_address: str) -> Iterator[tuple[str, list[str]]]:
        """Name and arguments of every order router."""
        for node in self.nodes:
            for router in self.routers(node):
                arguments = ["--router", router, "--node", node, "--venue", venue_address]
                arguments += ["--gate", str(self._gate(node)), "--link", str(self._link(node))]
                arguments += ["--symbols", ",".join(self.symbols), "--seed", str(self._options.seed)]
                arguments += ["--inventory-max-usd", str(INVENTORY_MAX_USD)]
                arguments += ["--risk-limits", str(self._risk_limits), "--state-dir", str(self._folder)]
                arguments += ["--stats", str(self.stats(router))]
                yield router, arguments

    @property
    def _config(self) -> Path:
        return self._folder / "killswitch.yaml"

    @property
    def _risk_limits(self) -> Path:
        return self._folder / "risk_limits.yaml"

    def _gate(self, node: str) -> Path:
        return self._folder / f"{node}.gate"

    def _link(self, node: str) -> Path:
        return self._folder / f"{node}.sock"
