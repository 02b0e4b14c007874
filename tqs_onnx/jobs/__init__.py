"""Whole jobs: the stages of the trip, and what is written where."""
