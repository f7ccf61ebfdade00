"""Scoring: how likely given texts are, with one forward per row; nothing is generated."""
