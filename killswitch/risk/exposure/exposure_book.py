"""Gross, net, long and short exposure, by bucket and by group, and what the working orders could make of it.

Every event (a fill, an order, a mark) costs the same however many symbols are held: sums are kept, and what one symbol
adds to them is exchanged. The sums are exact decimals, so nothing drifts and a flat book sums to 0.

What it does not do: it does not net one symbol against another, nor one bucket against another in the same symbol (a
hedge that can be lost is counted on both legs).
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import islice
from types import MappingProxyType
from typing import Final

import structlog

from killswitch.clock import NowNs, now_ns
from killswitch.risk.exact import ZERO
from killswitch.risk.exposure.bucket_position import NOTHING, BucketPosition, WorkingOrder
from killswitch.risk.exposure.exposure_figures import (
    BookHolding,
    BookOrder,
    ExposureFigures,
    GroupExposure,
    HeldPosition,
    Totals,
    exposure_figures,
    group_exposure,
)
from killswitch.risk.exposure.exposure_numbers import LARGEST, LARGEST_EQUITY_USD, SUMS, amount
from killswitch.risk.exposure.exposure_unit import OptionGreeks, Unit, linear_unit, option_unit
from killswitch.risk.exposure.policy_settings import UNGROUPED, ExposureSettings, MarkSeverity
from killswitch.risk.mark_ages import AT_UNKNOWN_NS, MarkAges, age_sentence
from killswitch.risk.order_inputs import is_name, side_sign
from killswitch.settings.settings_diff import needs_new_start

FAULTS_KEPT: Final = 100
"""Newest faults kept in memory; the log has all of them."""

SENTENCES_SHOWN: Final = 5

_FIXED: Final = ("groups", "max_symbols", "max_working_orders")

_NO_TIME_NS: Final = AT_UNKNOWN_NS - 1
"""A time before that of every mark: seen from it no age is known."""

_ONE = Decimal(1)
_log = structlog.get_logger("killswitch.risk")


class _Symbol:
    """What is known of one symbol."""

    __slots__ = ("at_ns", "group", "is_marked", "is_option", "multiplier", "sleeves", "unit")

    def __init__(self, group: str) -> None:
        self.group = group
        self.multiplier = _ONE
        self.unit: Unit | None = None
        self.is_marked = False
        self.at_ns = AT_UNKNOWN_NS
        self.is_option = False
        self.sleeves: dict[str, BucketPosition] = {}


class ExposureBook:
    """The exposure of one process. Thread-safe; nothing that comes from a market is ever raised.

    How a position is valued: at the newest mark. Without marks at its last fill, and before the first fill at the price
    of its first order. An option counts through its delta, at the price of the underlying that came with the Greeks.
    What it is valued at is good for ``mark_max_age_ms`` on the clock; a time in which the market is closed counts for
    nothing, since no mark can come then.

    UNKNOWN IS FROZEN, in two kinds. *Lasting*: a fill or an order with an unknown side, bucket or number, a symbol or
    order beyond the limits. What is held is not known any more, so every percentage is NaN until :meth:`rebuild`.
    *Passing*: a mark or an equity that is not a number, no mark yet, Greeks that cannot be, a symbol that no group
    names though there are groups, and, where the settings say so, a mark that is missing or too old. Every percentage
    is NaN until a good one comes or the position is gone. The :class:`PolicyDecisionTable`
    answers NaN with its strictest mode.

    Args:
        settings: buckets, groups and limits.
        clock: nanoseconds; ages are measured on it alone.
    """

    def __init__(self, settings: ExposureSettings | None = None, *, clock: NowNs = now_ns) -> None:
        self._clock = clock
        self.settings = settings if settings is not None else ExposureSettings()
        self._levels = _bucket_levels(self.settings)
        self._group_of = self.settings.group_of()
        self._lock = threading.Lock()
        self._equity_usd: Decimal | None = None
        self._symbols: dict[str, _Symbol] = {}
        self._ages = MarkAges(self.settings.mark_max_age_ms)
        self._market_open = True
        self._closed_ns = AT_UNKNOWN_NS
        self._faults: deque[str] = deque(maxlen=FAULTS_KEPT)
        self._untold: deque[str] = deque(maxlen=FAULTS_KEPT)
        self._clear()

    def _clear(self) -> None:
        self._buckets = {name: Totals() for name in self._levels}
        self._groups = {name: Totals() for name in (*self.settings.groups, UNGROUPED)}
        self._orders: dict[str, WorkingOrder] = {}
        self._unvalued: dict[str, None] = {}
        self._ungrouped: dict[str, None] = {}
        self._ages.look_again()
        for symbol in self._symbols.values():
            symbol.sleeves.clear()

    def set_levels(self, settings: ExposureSettings) -> None:
        """Go by the targets, maxima and ages of these settings from now on; what is held and working stays.

        Raises:
            ValueError: groups or the most symbols or orders differ, which needs a new start. Nothing has changed.
        """
        with self._lock:
            _require_same_book(self.settings, settings)
            self.settings, self._levels = settings, _bucket_levels(settings)
            self._ages.set_max_age(settings.mark_max_age_ms)

    # ---- what comes in

    def set_equity(self, equity_usd: float | Decimal) -> None:
        """Take the equity of the account, USD. One that is not a number makes every percentage NaN until a good one."""
        found = amount(equity_usd, LARGEST_EQUITY_USD)
        with self._lock:
            self._equity_usd = found

    def set_multiplier(self, symbol: str, multiplier: float | Decimal) -> None:
        """Say how many units of the underlying one contract of a future is; 1 for what is not named here.

        Call it before anything else of that symbol.

        Raises:
            ValueError: it is not a finite number above 0, or the symbol cannot be followed or is valued already.
        """
        size = amount(multiplier)
        if size is None or size <= 0:
            raise ValueError(f"{symbol}: multiplier {multiplier!r} is not a finite number above 0")
        with self._lock:
            state = self._symbol(symbol)
            if state is not None and state.unit is None and not state.sleeves:
                state.multiplier = size
                return
        self._tell()
        raise ValueError(f"{symbol}: it cannot be followed, or has been valued already; its multiplier comes first")

    def on_mark(self, symbol: str, price: float | Decimal) -> None:
        """Take a mark price, USD. For an option nothing changes: its exposure comes from its Greeks."""
        paid, at_ns = amount(price), self._time_ns()
        with self._lock:
            state = self._symbol(symbol)
            if state is not None and not state.is_option:
                state.is_marked = True
                self._came(symbol, state, at_ns)
                state.unit = linear_unit(paid, state.multiplier) if paid is not None and paid > 0 else None
                self._recount(symbol, state)
        self._tell()

    def on_greeks(self, symbol: str, greeks: OptionGreeks | None, *, multiplier: float = 1.0) -> None:
        """Take the Greeks of an option; with the first ones a symbol becomes an option for good.

        Args:
            symbol: the option.
            greeks: ``None`` when they could not be computed: the option cannot be valued until they can.
            multiplier: units of the underlying in one contract; one that is not a number counts as no Greeks.
        """
        size, at_ns = amount(multiplier), self._time_ns()
        unit: Unit | None = None
        if greeks is not None and size is not None and size > 0:
            unit = option_unit(greeks, multiplier)
        with self._lock:
            state = self._symbol(symbol)
            if state is not None:
                state.is_option = True
                state.unit = unit
                self._came(symbol, state, at_ns)
                self._recount(symbol, state)
        self._tell()

    def on_fill(
        self,
        symbol: str,
        side: str,
        qty: float | Decimal,
        price: float | Decimal,
        *,
        bucket: str,
        order_id: str | None = None,
    ) -> None:
        """Add a fill: buys add, sells subtract. With its order's id that order works for so much less, in one step.

        A fill of an order that is not known, or of more than was working, counts all the same: it is a fact.
        """
        with self._lock:
            self._fill(symbol, side, qty=qty, price=price, bucket=bucket, order_id=order_id)
        self._tell()

    def on_order(
        self,
        order_id: str,
        symbol: str,
        side: str,
        remaining_qty: float | Decimal,
        price: float | Decimal | None = None,
        *,
        bucket: str,
    ) -> None:
        """Take an order that is working, from the moment it is sent, or what remains of one that is known.

        Args:
            order_id: its name; the same name again replaces quantity and price.
            symbol: the instrument.
            side: ``buy`` or ``sell``, in lower, upper or title case.
            remaining_qty: what may still fill; 0 is the same as :meth:`on_order_over`.
            price: its limit; ``None`` for an order at any price.
            bucket: the bucket that its fills go to.
        """
        with self._lock:
            self._order(order_id, symbol, side, remaining_qty=remaining_qty, price=price, bucket=bucket)
        self._tell()

    def on_order_over(self, order_id: str) -> None:
        """Forget an order that can fill no more. One that is not known changes nothing."""
        with self._lock:
            order = self._orders.get(order_id) if is_name(order_id) else None
            if order is None:
                return
            state = self._symbols[order.symbol]
            self._work(order_id, _sleeve(state, order.bucket), order, ZERO)
            self._recount(order.symbol, state)

    def forget_symbol(self, symbol: str) -> bool:
        """Forget an instrument that is gone, such as an expired option. False while it is held; it stays then."""
        with self._lock:
            state = self._symbols.get(symbol)
            if state is None or state.sleeves:
                return False
            del self._symbols[symbol]
            return True

    def rebuild(self, holdings: Iterable[BookHolding], orders: Iterable[BookOrder]) -> None:
        """Forget everything that is held and working, and every fault, and start from these; marks and Greeks stay.

        Nobody sees the book half built.

        Raises:
            ValueError: one of them makes no sense, named in the sentence. The book is empty then and cannot be trusted.
        """
        held, working = list(holdings), list(orders)
        with self._lock:
            self._clear()
            self._faults.clear()
            for one in held:
                quantity = amount(one.quantity)
                if quantity == 0:
                    continue
                side = "sell" if quantity is not None and quantity < 0 else "buy"
                size = one.quantity if quantity is None else quantity.copy_abs()
                self._fill(one.symbol, side, qty=size, price=one.price, bucket=one.bucket, order_id=None)
            for order in working:
                self._order(
                    order.order_id,
                    order.symbol,
                    order.side,
                    remaining_qty=order.remaining_qty,
                    price=order.price,
                    bucket=order.bucket,
                )
            faults = list(self._faults)
            if faults:
                self._clear()
        self._tell()
        if faults:
            raise ValueError(f"the book cannot be rebuilt: {faults[0]}")

    # ---- figures

    def figures(self, *, market_open: bool = True) -> ExposureFigures:
        """Return the exposure now, one consistent moment of it; the cost does not grow with the number of symbols.

        Args:
            market_open: whether marks can come. While they cannot, none gets older.
        """
        now = self._time_ns()
        with self._lock:
            self._look_at_ages(now, market_open=market_open)
            faults, warnings = self._sentences(), self._old_marks("warning")
            equity = self._equity_usd
            buckets = {name: totals.read() for name, totals in self._buckets.items()}
            working, levels = len(self._orders), self._levels
        return exposure_figures(
            buckets, equity, levels=levels, faults=faults, warnings=warnings, working_orders=working
        )

    def groups(self) -> Mapping[str, GroupExposure]:
        """Return the exposure of every group, and of ``UNGROUPED``, which holds the symbols that no group names."""
        now = self._time_ns()
        with self._lock:
            self._look_at_ages(now, market_open=self._market_open)
            base = None if self._sentences() else self._equity_usd
            groups = {name: totals.read() for name, totals in self._groups.items()}
        return MappingProxyType({name: group_exposure(totals, base) for name, totals in groups.items()})

    def positions(self) -> list[HeldPosition]:
        """Return every position with its working orders, by symbol and bucket. The cost grows with their number."""
        with self._lock:
            return [
                HeldPosition(
                    name,
                    bucket,
                    sleeve.quantity,
                    sleeve.buys.quantity,
                    sleeve.sells.quantity,
                    None if state.unit is None else SUMS.multiply(sleeve.quantity, state.unit.usd).copy_abs(),
                )
                for name, state in sorted(self._symbols.items())
                for bucket, sleeve in sorted(state.sleeves.items())
            ]

    # ---- inside; the lock is held

    def _fill(self, symbol: str, side: str, *, qty: object, price: object, bucket: str, order_id: str | None) -> None:
        sign, quantity, paid = side_sign(side), amount(qty), amount(price)
        sound = quantity is not None and quantity > 0 and paid is not None and paid > 0
        if sign is None or quantity is None or paid is None or not sound or not self._is_bucket(bucket):
            self._note(f"a fill of {symbol} makes no sense: {side} {qty} at {price} in bucket {bucket}")
            return
        state = self._symbol(symbol)
        if state is None:
            return
        sleeve = _sleeve(state, bucket)
        sleeve.quantity = SUMS.add(sleeve.quantity, quantity if sign > 0 else quantity.copy_negate())
        if sleeve.quantity.copy_abs() > LARGEST:
            self._note(f"the position in {symbol} is beyond {LARGEST}")
        order = self._orders.get(order_id) if isinstance(order_id, str) else None
        if order is not None and order_id is not None:
            if (order.symbol, order.bucket, order.sign) == (symbol, bucket, sign):
                self._work(order_id, sleeve, order, SUMS.subtract(order.remaining, min(quantity, order.remaining)))
            else:
                self._note(f"a fill of {symbol} names order {order_id}, which is another kind of order")
        if not state.is_marked and not state.is_option:
            state.unit = linear_unit(paid, state.multiplier)
            self._came(symbol, state, self._time_ns())
        self._recount(symbol, state)

    def _order(
        self, order_id: str, symbol: str, side: str, *, remaining_qty: object, price: object, bucket: str
    ) -> None:
        sign, remaining = side_sign(side), amount(remaining_qty)
        paid = amount(price) if price is not None else None
        sound = is_name(order_id) and (price is None or (paid is not None and paid > 0))
        if sign is None or remaining is None or remaining < 0 or not sound or not self._is_bucket(bucket):
            told = f"{order_id!r} {side} {remaining_qty} at {price} in bucket {bucket}"
            self._note(f"an order of {symbol} makes no sense: {told}")
            return
        state = self._symbol(symbol)
        if state is None:
            return
        known = self._orders.get(order_id)
        if known is not None and (known.symbol, known.bucket, known.sign) != (symbol, bucket, sign):
            self._note(f"order {order_id} of {symbol} was another kind of order before")
            return
        if known is None and len(self._orders) >= self.settings.max_working_orders:
            self._note(f"order {order_id}: more than {self.settings.max_working_orders} orders are working")
            return
        sleeve = _sleeve(state, bucket)
        if known is not None:
            self._work(order_id, sleeve, known, ZERO)
        self._work(order_id, sleeve, WorkingOrder(symbol, bucket, sign, ZERO, paid), remaining)
        if state.unit is None and paid is not None and not state.is_marked and not state.is_option:
            state.unit = linear_unit(paid, state.multiplier)
            self._came(symbol, state, self._time_ns())
        self._recount(symbol, state)

    def _is_bucket(self, bucket: object) -> bool:
        return isinstance(bucket, str) and bucket in self._levels

    def _symbol(self, name: object) -> _Symbol | None:
        """Return what is known of a symbol; ``None``, and a fault, when one more cannot be followed."""
        if not isinstance(name, str) or not name:
            self._note(f"{name!r} is no symbol")
            return None
        state = self._symbols.get(name)
        if state is None:
            if len(self._symbols) >= self.settings.max_symbols:
                self._note(f"{name}: more than {self.settings.max_symbols} symbols")
                return None
            state = self._symbols[name] = _Symbol(self._group_of.get(name, UNGROUPED))
        return state

    def _work(self, order_id: str, sleeve: BucketPosition, order: WorkingOrder, remaining: Decimal) -> None:
        """Change what remains of an order; one of which nothing remains is forgotten."""
        sleeve.work(order, remaining)
        if remaining > 0:
            self._orders[order_id] = order
        else:
            self._orders.pop(order_id, None)

    def _recount(self, name: str, state: _Symbol) -> None:
        """Exchange what a symbol adds to the sums."""
        unit, group = state.unit, self._groups[state.group]
        for bucket, sleeve in list(state.sleeves.items()):
            before = sleeve.counted
            after = NOTHING if unit is None else sleeve.contribution(unit)
            self._buckets[bucket].change(before, after)
            group.change(before, after)
            sleeve.counted = after
            if sleeve.is_empty:
                del state.sleeves[bucket]
        if state.sleeves:
            self._ages.held(name, state.at_ns)
        else:
            self._ages.too_old.pop(name, None)
        _keep(self._unvalued, name, unit is None and bool(state.sleeves))
        if self._group_of:
            _keep(self._ungrouped, name, state.group == UNGROUPED and bool(state.sleeves))

    def _came(self, name: str, state: _Symbol, at_ns: int | None) -> None:
        """Note when what a symbol is valued at has come; a time that is not known is too old."""
        state.at_ns = AT_UNKNOWN_NS if at_ns is None else at_ns
        if at_ns is None:
            self._ages.look_again()
        elif self._ages.too_old:
            self._ages.too_old.pop(name, None)

    def _look_at_ages(self, now: int | None, *, market_open: bool) -> None:
        """Look for marks that are too old, when one may have become so; of what time it is unknown, all are."""
        ages = self._ages
        self._market_open = market_open
        if not market_open:
            ages.look_again()
            self._closed_ns = self._closed_ns if now is None else now
        elif now is None:
            ages.look(_NO_TIME_NS, ((name, one.at_ns) for name, one in self._symbols.items() if one.sleeves))
            ages.due_ns = ages.looked_ns
        elif ages.is_due(now):
            # No mark can have come while the market was closed, so that no mark is older than the end of that.
            closed_ns = self._closed_ns
            held = ((name, max(one.at_ns, closed_ns)) for name, one in self._symbols.items() if one.sleeves)
            ages.look(now, held)

    def _old_marks(self, severity: MarkSeverity) -> tuple[str, ...]:
        """What to say of the marks that are too old and do this: of some of them, the first that were found."""
        ages, said = self._ages, []
        if not ages.too_old or ages.max_age_ms is None:
            return ()
        for name, at_ns in ages.too_old.items():
            state = self._symbols[name]
            marked = state.is_marked or state.is_option
            if severity == (self.settings.mark_stale if marked else self.settings.mark_missing):
                said.append(
                    age_sentence(name, at_ns=at_ns, now_ns=ages.looked_ns, max_age_ms=ages.max_age_ms, marked=marked)
                )
            if len(said) == SENTENCES_SHOWN:
                break
        return tuple(said)

    def _sentences(self) -> tuple[str, ...]:
        """Why the book cannot be trusted: some of the reasons of each kind, empty when it can."""
        old = self._old_marks("unknown")
        if not (self._faults or self._unvalued or self._ungrouped or old):
            return ()
        said = [f"{name} has no price that can be used" for name in islice(self._unvalued, SENTENCES_SHOWN)]
        said += [f"{name} is in no group" for name in islice(self._ungrouped, SENTENCES_SHOWN)]
        said += old
        return (*said, *list(self._faults)[-SENTENCES_SHOWN:])

    def _note(self, sentence: str) -> None:
        self._faults.append(sentence)
        self._untold.append(sentence)

    # ---- inside; the lock is not held

    def _time_ns(self) -> int | None:
        """The time; ``None`` when the clock fails."""
        try:
            return int(self._clock())
        except Exception:  # whatever a clock raises, no age is known
            return None

    def _tell(self) -> None:
        """Log what was noted. Never under the lock: a log that blocks must not hold up a fill."""
        while self._untold:
            with contextlib.suppress(IndexError):  # another thread was faster
                _log.error("the exposure is not known any more", why=self._untold.popleft())


def _sleeve(state: _Symbol, bucket: str) -> BucketPosition:
    sleeve = state.sleeves.get(bucket)
    if sleeve is None:
        sleeve = state.sleeves[bucket] = BucketPosition()
    return sleeve


def _keep(names: dict[str, None], name: str, wanted: bool) -> None:
    """Keep a name, in order of arrival, exactly while it is wanted."""
    if wanted:
        names[name] = None
    else:
        names.pop(name, None)


def _bucket_levels(settings: ExposureSettings) -> dict[str, tuple[float, float]]:
    """Return target and most of every bucket, in per cent of equity."""
    buckets = settings.buckets
    names = type(buckets).model_fields
    return {name: (getattr(buckets, name).target_pct, getattr(buckets, name).max_pct) for name in names}


def _require_same_book(before: ExposureSettings, after: ExposureSettings) -> None:
    """Refuse settings that a book which follows other ones already cannot take.

    Raises:
        ValueError: one sentence, naming what differs.
    """
    names = [f"exposure.{name}" for name in _FIXED if getattr(before, name) != getattr(after, name)]
    if names:
        raise ValueError(needs_new_start(names))
