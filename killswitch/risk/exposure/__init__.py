"""Exposure in per cent of equity, the table of policy, the trading day, and how a derisk is done."""
