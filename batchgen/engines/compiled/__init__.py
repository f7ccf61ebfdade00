"""The small operations of a decode step as loops that Numba compiles for this processor, if the extra is installed.

Each loop computes a row from that row alone, so its bits do not depend on the batch. Knows layers of `fused` and the
slots' pages, and no model family.
"""
