"""Settings of the pre-trade controls. A section that is absent is off, but for the throttle, which has a default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictStr

from killswitch.settings.section import (
    Bps,
    Count,
    Fewer,
    Higher,
    LaterWord,
    Lower,
    LowerOnlyBelow,
    Ms,
    Neither,
    Section,
    SymbolName,
    Usd,
)

MAX_SYMBOLS = 10_000

Severity = Literal["refuse", "freeze"]
"""What a fault does: refuse that one order, or refuse it and freeze this process."""

_Quantity = Annotated[float, Field(strict=True, gt=0)]


class SymbolOrderSize(Section):
    """Limits of single orders in one symbol; what is absent is as for every symbol."""

    max_quantity: LowerOnlyBelow[_Quantity | None] = Field(
        None, description="Units of the symbol. The most of one order in it."
    )
    max_value_usd: LowerOnlyBelow[Usd | None] = Field(
        None, description="USD. The most of one order in it, quantity times price."
    )


class OrderSizeSettings(Section):
    """Largest single order: RTS 6 Art. 15(1)(b) and (c). Exactly the limit passes."""

    max_quantity: Lower[_Quantity | None] = Field(None, description="Units of the symbol; absent: no limit.")
    max_value_usd: Lower[Usd | None] = Field(None, description="USD, quantity times price; absent: no limit.")
    symbols: dict[SymbolName, SymbolOrderSize] = Field(
        default_factory=dict, description="Limits of single symbols, instead of the two above.", max_length=MAX_SYMBOLS
    )

    def faults(self) -> list[str]:
        """Return whether it limits nothing at all."""
        if self.max_quantity is None and self.max_value_usd is None and not self.symbols:
            return ["sets no limit; leave the whole section out to have none"]
        return []


class PriceCollarSettings(Section):
    """How far a price may lie from the reference: RTS 6 Art. 15(1)(a), order by order and over time."""

    max_deviation_bps: Lower[Bps] = Field(
        ..., description="Basis points between an order's price and the newest reference."
    )
    symbols_max_deviation_bps: LowerOnlyBelow[dict[SymbolName, Bps]] = Field(
        default_factory=dict, description="Basis points for single symbols, instead.", max_length=MAX_SYMBOLS
    )
    over_time_bps: Lower[Bps | None] = Field(
        None, description="Basis points between an order's price and every reference of the window; absent: not asked."
    )
    window_ms: Higher[Ms] = Field(
        60_000, description="Milliseconds that the window reaches back at least; at most twice that."
    )


class ThrottleSettings(Section):
    """Messages a second: RTS 6 Art. 15(1)(d). Each limit is a token bucket that fills evenly."""

    orders_per_s: Lower[Count | None] = Field(
        100, description="Count a second. New orders over all symbols; null: no limit."
    )
    amends_per_s: Lower[Count | None] = Field(
        100, description="Count a second. Amendments over all symbols; null: no limit."
    )
    symbol_orders_per_s: Lower[Count | None] = Field(None, description="Count a second. New orders in one symbol.")
    symbol_amends_per_s: Lower[Count | None] = Field(None, description="Count a second. Amendments in one symbol.")
    burst_s: Lower[Annotated[float, Field(strict=True, gt=0, le=3_600)]] = Field(
        1.0, description="Seconds' worth of messages that may go at once after a pause: in any second at most (1 + "
        "burst_s) times the limit.",
    )  # fmt: skip


class DuplicateSettings(Section):
    """Orders that are all the same: symbol, side, quantity and price."""

    max_same_orders: Lower[Count] = Field(10, description="Count. Same orders within the window; one more is refused.")
    window_ms: Higher[Ms] = Field(1_000, description="Milliseconds. How long an order counts for the same as another.")


class RepeatedExecutionSettings(Section):
    """Executions of one strategy that no person has looked at: RTS 6 Art. 15(3)."""

    max_executions: Lower[Count] = Field(
        ..., description="Count. Fills of one strategy; then it is disabled until a person acts."
    )
    designated_staff: Neither[tuple[Annotated[StrictStr, Field(min_length=1, max_length=128)], ...]] = Field(
        (), description="Who may enable a strategy again; empty: any named person.", max_length=1_000
    )


class WorkingOrderSettings(Section):
    """Orders that work at one time."""

    max_total: Lower[Count | None] = Field(None, description="Count. Orders over all symbols; absent: no limit.")
    max_per_symbol: Lower[Count | None] = Field(None, description="Count. Orders in one symbol; absent: no limit.")


class DailySettings(Section):
    """What may happen in one calendar day. What is absent is not limited."""

    max_orders: Lower[Count | None] = Field(None, description="Count. Orders that passed.")
    max_cancels: Lower[Count | None] = Field(
        None, description="Count. Cancels; at the limit new orders are refused, cancels never."
    )
    max_losses: Lower[Count | None] = Field(
        None, description="Count. Trades that ended with a loss; then only reducing orders pass."
    )
    max_loss_usd: Lower[Usd | None] = Field(
        None, description="USD lost over the day's trades together; from there on only reducing orders pass."
    )


class InputHealthSettings(Section):
    """What makes a price unfit to trade on, and what that does."""

    max_age_ms: Lower[Ms] = Field(5_000, description="Milliseconds since the newest price of the symbol.")
    frozen_after_ms: Lower[Ms | None] = Field(
        None, description="Milliseconds that prices may come without any change; absent: not asked."
    )
    missing: LaterWord[Severity] = Field("refuse", description="No price of the symbol has come yet.")
    stale: LaterWord[Severity] = Field("refuse", description="The newest price is too old.")
    bad: LaterWord[Severity] = Field("freeze", description="The newest price is no finite number above 0.")
    crossed: LaterWord[Severity] = Field("refuse", description="The newest bid is above the newest ask.")
    frozen: LaterWord[Severity] = Field("refuse", description="Prices come and never change.")


class PreTradeSettings(Section):
    """All pre-trade controls of one process."""

    permitted_symbols: Fewer[tuple[SymbolName, ...] | None] = Field(
        None, description="What may be traded: RTS 6 Art. 15(5). Absent: everything; empty: nothing.",
        max_length=MAX_SYMBOLS,
    )  # fmt: skip
    order_size: OrderSizeSettings | None = Field(None, description="Largest single order.")
    price_collar: PriceCollarSettings | None = Field(None, description="Distance from the reference price.")
    throttle: ThrottleSettings | None = Field(
        default_factory=ThrottleSettings, description="Messages a second; null switches it off."
    )
    duplicates: DuplicateSettings | None = Field(None, description="Orders that are all the same.")
    repeated_executions: RepeatedExecutionSettings | None = Field(None, description="Executions without a person.")
    working_orders: WorkingOrderSettings | None = Field(None, description="Orders that work at one time.")
    daily: DailySettings | None = Field(None, description="Counts of a calendar day.")
    input_health: InputHealthSettings | None = Field(None, description="Prices that are fit to trade on.")
    clock_stepped: LaterWord[Severity] = Field("freeze", description="The clock went back.")
    control_error: LaterWord[Severity] = Field(
        "freeze", description="A control, a rule or a clock raised, or said nonsense."
    )
    control_overrun: LaterWord[Severity] = Field(
        "refuse", description="The controls, or one rule, took longer than the budget."
    )
    control_budget_ms: Lower[Annotated[float, Field(strict=True, gt=0)]] = Field(
        100.0, description="Milliseconds that the controls together, and each rule of the user's own, may take."
    )

    def faults(self) -> list[str]:
        """Return what does not fit together between the sections."""
        if self.price_collar is not None and self.input_health is None:
            return ["price_collar: needs input_health, since a collar around a price of unknown age protects nothing"]
        return []
