"""The account on every tick: equity, drawdown, leverage, and what follows."""
