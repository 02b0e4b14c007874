"""Read, cut and check contexts."""
