"""Spend the byte budget: choose the tier of each weight."""
