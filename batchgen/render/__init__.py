"""Everything that is drawn on a terminal: tables, grids of token columns, progress, the summary line.

Decides nothing. No character of a prompt, output, path or error reaches a terminal unescaped.
"""
