"""What a demo is asked to show, and what cannot be asked of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from killswitch.simulation.tape import BadTape, bars_from_csv

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
