"""One file a format, its reading and its writing side by side; sources, compression, templates of columns.

Knows nothing of tokens, models or terminals.
"""
