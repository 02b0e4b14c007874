"""Measure perturbed rollouts and keep the results."""
