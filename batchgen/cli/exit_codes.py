"""The exit codes of commands, besides those for errors and signals."""

SOME_ROWS_FAILED = 3
DIFFERENT = 4
BROKEN_PIPE = 141
