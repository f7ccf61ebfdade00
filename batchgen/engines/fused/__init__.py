"""Decoder layers of few operations: what a layer computes, seen at its modules, its cache and its attention.

Knows no family by name. What a watched layer does not confirm is left as transformers wrote it.
"""
