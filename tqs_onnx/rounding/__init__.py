"""Data-aware rounding: which integers stand for a weight, given what the weight is multiplied with."""
