"""Integer grids, their scales, and rounding to them."""
