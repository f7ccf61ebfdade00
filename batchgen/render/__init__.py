"""Everything drawn on a terminal: tables, grids of token columns, progress, the summary line.

Decides nothing. Every character of a prompt, output, path or error is escaped before it reaches a terminal.
"""
