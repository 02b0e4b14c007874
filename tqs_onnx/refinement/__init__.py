"""From an allocated plan to the one that is emitted."""
