"""The plan of a sweep: what is measured, as plain values."""
