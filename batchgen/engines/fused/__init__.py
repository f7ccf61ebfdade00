"""Decoder layers with few operations: what a layer computes is observed at its modules, its cache and its attention.

Knows no family by name. A layer that observation does not confirm stays as transformers wrote it.
"""
