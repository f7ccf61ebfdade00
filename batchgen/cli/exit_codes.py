"""What a command's exit code says, beside those of errors and of signals."""

SOME_ROWS_FAILED = 3
DIFFERENT = 4  # `verify` or `diff` found a difference
BROKEN_PIPE = 141
