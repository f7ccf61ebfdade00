"""Which rows run together: windows, batches, memory arithmetic, back-off, forecast.

Knows nothing of how an engine runs them.
"""
