"""8-bit integers for a network's linear layers: weights with a scale per output, inputs with a scale per row.

Knows nothing of batches, caches or attention.
"""
