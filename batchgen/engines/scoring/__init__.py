"""Scoring: how likely given texts are, each row by one forward; nothing is generated."""
