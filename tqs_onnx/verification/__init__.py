"""Verifies an emitted file: rolls it out, checks its gates, and records the results."""
