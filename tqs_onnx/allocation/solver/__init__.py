"""The multiple-choice knapsack, on plain values."""
