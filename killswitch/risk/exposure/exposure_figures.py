"""What an exposure book says of one moment, and what it is told when it is rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from killswitch.risk.exact import ZERO
from killswitch.risk.exposure.bucket_position import Contribution
from killswitch.risk.exposure.exposure_numbers import SUMS, percentage


class Totals:
    """Running sums of contributions; exact, so that a book that is flat again sums to 0."""

    __slots__ = ("gamma", "long", "potential", "short", "vega")

    def __init__(self) -> None:
        self.long = self.short = self.potential = self.gamma = self.vega = ZERO

    def change(self, before: Contribution, after: Contribution) -> None:
        """Take one contribution away and add another."""
        add, subtract = SUMS.add, SUMS.subtract
        self.long = add(subtract(self.long, before.long_usd), after.long_usd)
        self.short = add(subtract(self.short, before.short_usd), after.short_usd)
        self.potential = add(subtract(self.potential, before.potential_usd), after.potential_usd)
        if before.gamma_usd_per_pct or after.gamma_usd_per_pct:
            self.gamma = add(subtract(self.gamma, before.gamma_usd_per_pct), after.gamma_usd_per_pct)
        if before.vega_usd_per_point or after.vega_usd_per_point:
            self.vega = add(subtract(self.vega, before.vega_usd_per_point), after.vega_usd_per_point)

    def read(self) -> Contribution:
        """Return the sums as one value that does not change."""
        return Contribution(self.long, self.short, self.potential, self.gamma, self.vega)


@dataclass(frozen=True, slots=True)
class BucketExposure:
    """One bucket; per cent of equity, NaN when the book cannot be trusted.

    Attributes:
        current_pct: (abs(long) + abs(short)) / equity * 100.
        potential_pct: the same with the worst of the working orders filled.
        target_pct: what it should hold.
        max_pct: the most that it may hold.
        current_usd: as far as it is known.
        potential_usd: as far as it is known.
    """

    current_pct: float
    potential_pct: float
    target_pct: float
    max_pct: float
    current_usd: float
    potential_usd: float


@dataclass(frozen=True, slots=True)
class GroupExposure:
    """One group of symbols; per cent of equity, NaN when the book cannot be trusted."""

    gross_exposure_pct: float
    net_exposure_pct: float
    potential_exposure_pct: float


@dataclass(frozen=True, slots=True)
class ExposureFigures:
    """The exposure of one moment.

    Percentages are of equity: NaN when the book cannot be trusted or the equity is not known, infinite when the equity
    is 0 or less. Money is what is known, trusted or not.

    Attributes:
        trusted: whether everything that the book was told could be counted.
        faults: why not, the newest last; empty when trusted.
        equity_usd: ``None`` when not known.
        gross_exposure_pct: (abs(long) + abs(short)) / equity * 100.
        long_exposure_pct: the long part.
        short_exposure_pct: the short part, as a positive number.
        net_exposure_pct: long less short.
        potential_exposure_pct: gross with the worst of the working orders filled.
        open_orders_potential: what working orders could add to the gross, per cent of equity.
        open_orders_potential_usd: the same in USD.
        buckets: by name.
        gross_usd, long_usd, short_usd, net_usd, potential_usd: the same as money.
        gamma_usd_per_pct: by how much the net exposure grows when every underlying rises by one per cent.
        vega_usd_per_point: by how much the options gain when every volatility rises by one point.
        working_orders: how many there are.
        warnings: what was counted and is doubtful: marks that are too old, where the settings only warn of them.
    """

    trusted: bool
    faults: tuple[str, ...]
    equity_usd: float | None
    gross_exposure_pct: float
    long_exposure_pct: float
    short_exposure_pct: float
    net_exposure_pct: float
    potential_exposure_pct: float
    open_orders_potential: float
    open_orders_potential_usd: float
    buckets: Mapping[str, BucketExposure]
    gross_usd: float
    long_usd: float
    short_usd: float
    net_usd: float
    potential_usd: float
    gamma_usd_per_pct: float
    vega_usd_per_point: float
    working_orders: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BookHolding:
    """A position that a book is rebuilt from; ``quantity`` is signed, ``price`` in USD."""

    symbol: str
    bucket: str
    quantity: float | Decimal
    price: float | Decimal


@dataclass(frozen=True, slots=True)
class BookOrder:
    """A working order that a book is rebuilt from; ``side`` as everywhere, ``price`` in USD or ``None``."""

    order_id: str
    symbol: str
    bucket: str
    side: str
    remaining_qty: float | Decimal
    price: float | Decimal | None = None


@dataclass(frozen=True, slots=True)
class HeldPosition:
    """A position with its working orders, as a derisk plan needs it.

    Attributes:
        symbol: the instrument.
        bucket: the bucket.
        quantity: signed, exact.
        working_buys: what working orders may still buy.
        working_sells: what working orders may still sell.
        value_usd: absolute exposure in USD; ``None`` when it cannot be valued.
    """

    symbol: str
    bucket: str
    quantity: Decimal
    working_buys: Decimal
    working_sells: Decimal
    value_usd: Decimal | None


def group_exposure(totals: Contribution, equity_usd: Decimal | None) -> GroupExposure:
    """Return one group's figures; pure."""
    return GroupExposure(
        gross_exposure_pct=percentage(SUMS.add(totals.long_usd, totals.short_usd), equity_usd),
        net_exposure_pct=percentage(SUMS.subtract(totals.long_usd, totals.short_usd), equity_usd),
        potential_exposure_pct=percentage(totals.potential_usd, equity_usd),
    )


def exposure_figures(
    buckets: Mapping[str, Contribution],
    equity_usd: Decimal | None,
    *,
    levels: Mapping[str, tuple[float, float]],
    faults: tuple[str, ...],
    warnings: tuple[str, ...],
    working_orders: int,
) -> ExposureFigures:
    """Return the figures of one moment; pure.

    Args:
        buckets: what each bucket adds up to.
        equity_usd: ``None`` when not known.
        levels: target and most of each bucket, in per cent of equity.
        faults: why the book cannot be trusted, empty when it can.
        warnings: what was counted and is doubtful.
        working_orders: how many there are.
    """
    base = None if faults else equity_usd
    long_usd = short_usd = potential_usd = gamma = vega = ZERO
    for one in buckets.values():
        long_usd, short_usd = SUMS.add(long_usd, one.long_usd), SUMS.add(short_usd, one.short_usd)
        potential_usd = SUMS.add(potential_usd, one.potential_usd)
        gamma, vega = SUMS.add(gamma, one.gamma_usd_per_pct), SUMS.add(vega, one.vega_usd_per_point)
    gross_usd, net_usd = SUMS.add(long_usd, short_usd), SUMS.subtract(long_usd, short_usd)
    orders_usd = SUMS.subtract(potential_usd, gross_usd)
    return ExposureFigures(
        trusted=not faults,
        faults=faults,
        equity_usd=None if equity_usd is None else float(equity_usd),
        gross_exposure_pct=percentage(gross_usd, base),
        long_exposure_pct=percentage(long_usd, base),
        short_exposure_pct=percentage(short_usd, base),
        net_exposure_pct=percentage(net_usd, base),
        potential_exposure_pct=percentage(potential_usd, base),
        open_orders_potential=percentage(orders_usd, base),
        open_orders_potential_usd=float(orders_usd),
        buckets=MappingProxyType({name: _bucket(one, base, levels[name]) for name, one in buckets.items()}),
        gross_usd=float(gross_usd),
        long_usd=float(long_usd),
        short_usd=float(short_usd),
        net_usd=float(net_usd),
        potential_usd=float(potential_usd),
        gamma_usd_per_pct=float(gamma),
        vega_usd_per_point=float(vega),
        working_orders=working_orders,
        warnings=warnings,
    )


def _bucket(one: Contribution, base: Decimal | None, levels: tuple[float, float]) -> BucketExposure:
    target_pct, max_pct = levels
    gross_usd = SUMS.add(one.long_usd, one.short_usd)
    return BucketExposure(
        current_pct=percentage(gross_usd, base),
        potential_pct=percentage(one.potential_usd, base),
        target_pct=target_pct,
        max_pct=max_pct,
        current_usd=float(gross_usd),
        potential_usd=float(one.potential_usd),
    )
