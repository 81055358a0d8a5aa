"""Figures of statistics: value at risk, and anomalies."""
