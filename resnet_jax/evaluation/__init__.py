"""Scoring networks, every example exactly once."""
