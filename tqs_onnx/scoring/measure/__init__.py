"""Measures perturbed rollouts and stores the results."""
