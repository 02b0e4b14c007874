"""Shows runs: one self-contained HTML page, a model card, and their tables as CSV."""
