"""Settings of the anomaly detector. Nothing of river is read here."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from killswitch.settings.section import CountToMillion, Section

MAX_TREE_NODES: Final = 2_000_000
"""Most nodes of all trees of all symbols; one takes some 225 bytes, so all of them 450 MB."""

MAX_WARMUP_READINGS: Final = 1_000_000
"""Most readings that all symbols together may hold while they warm up."""

AnomalyAction = Literal["advise", "reduce_only", "freeze"]
"""What a confirmed anomaly does. ``advise``: it is told, and nothing closes."""


class AnomalySettings(Section):
    """What is unlike everything seen in the warm-up, and what that does.

    The defaults are measured: on seeded calm days about 3 in 100 readings score as anomalous by chance, and three in
    a row almost never do.
    """

    action: AnomalyAction = Field(
        "advise", description="advise, reduce_only or freeze. What a confirmed anomaly does; advise closes nothing."
    )
    n_trees: Annotated[int, Field(strict=True, ge=1, le=500)] = Field(25, description="Count. Trees of one detector.")
    height: Annotated[int, Field(strict=True, ge=1, le=12)] = Field(
        6, description="Levels of a tree; one more doubles its memory and asks for a higher threshold."
    )
    window_observations: Annotated[int, Field(strict=True, ge=10, le=100_000)] = Field(
        250, description="Count. Readings that were learned from which the trees know what is usual."
    )
    threshold: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(
        0.96, description="Score from 0 to 1. A reading is anomalous from this score on; it belongs to the height."
    )
    max_outside_widths: Annotated[float, Field(strict=True, gt=0, le=1_000_000)] | None = Field(
        1.0,
        description="Widths of a feature's range in the warm-up. Farther outside of it than this is anomalous whatever "
        "the trees say; null: only the trees are asked.",
    )
    warmup_observations: CountToMillion = Field(
        500, description="Count. Readings that are taken for usual before anything is judged."
    )
    confirmations: Annotated[int, Field(strict=True, ge=1, le=1_000)] = Field(
        3, description="Count. Anomalous readings in a row that make an anomaly a confirmed one."
    )
    seed: Annotated[int, Field(strict=True, ge=0)] = Field(
        1, description="Seed of the trees. The same makes the same trees."
    )
    max_symbols: CountToMillion = Field(
        100, description="Count. Most detectors, one for each symbol; one more is a fault."
    )

    def faults(self) -> list[str]:
        """Return thresholds that no reading can reach, warm-ups that are too short, and what needs too much memory."""
        faults = []
        nodes = 2 ** (self.height + 1)
        # A tree adds mass times 2**depth on the way down. The root always holds the whole window, so the score stays
        # below one by at least this much.
        largest = 1.0 - 1.0 / (nodes - 1)
        if self.threshold >= largest:
            faults.append(
                f"threshold ({self.threshold:g}) must be below {largest:.4f}, the largest score that trees of height "
                f"{self.height} can give"
            )
        if self.warmup_observations < self.window_observations:
            faults.append(
                f"warmup_observations ({self.warmup_observations}) must be at least window_observations "
                f"({self.window_observations}), or the trees know nothing when they are first asked"
            )
        if self.n_trees * nodes * self.max_symbols > MAX_TREE_NODES:
            faults.append(
                f"n_trees ({self.n_trees}) times 2^(height + 1) ({nodes}) times max_symbols ({self.max_symbols}) must "
                f"be at most {MAX_TREE_NODES} nodes of trees"
            )
        if self.warmup_observations * self.max_symbols > MAX_WARMUP_READINGS:
            faults.append(
                f"warmup_observations ({self.warmup_observations}) times max_symbols ({self.max_symbols}) must be at "
                f"most {MAX_WARMUP_READINGS}"
            )
        return faults
