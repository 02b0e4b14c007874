"""Spend the bytes: which weight gets which tier."""
