"""Data-aware rounding: chooses the integers of a weight from the inputs it is multiplied with."""
