"""8-bit integers in place of a network's linear layers: weights with a scale per output, inputs with a scale per row.

Knows nothing of batches, caches or attention.
"""
