"""Every engine is tried on a model before its first row: in a batch of very different lengths, against each row alone.

What does not hold is not used. The verdict is kept with what it depends on, so that a kept one costs nothing.
"""
