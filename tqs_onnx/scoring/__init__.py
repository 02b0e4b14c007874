"""Measures how strongly each weight's rounding error grows over the forecast."""
