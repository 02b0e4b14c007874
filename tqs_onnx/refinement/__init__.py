"""Refines an allocated plan: joint repair, data-aware rounding, the objective `measured`."""
