"""Which rows run together: windows, batches, memory arithmetic, back-off, forecast.

Does not know how an engine runs them.
"""
