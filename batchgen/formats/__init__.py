"""One file per format, with its reader and its writer; sources, compression, prompt templates.

Knows nothing about tokens, models or terminals.
"""
