"""Contexts: read, cut, checked."""
