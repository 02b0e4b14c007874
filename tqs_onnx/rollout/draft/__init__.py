"""Drafts a rollout spec for a model that nobody described: from names, shapes, metadata, the graph and trial calls."""
