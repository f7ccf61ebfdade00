"""Every engine is tried on a model before its first row: in a batch of very different lengths, against each row alone.

Whatever gives different results is not used. The verdict is kept with everything it depends on, so it is only needed
once.
"""
