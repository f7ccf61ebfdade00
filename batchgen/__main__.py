"""Where the `batchgen` command starts, also as `python -m batchgen`."""

import os
import signal

# Loops that an OpenMP thread spins while it waits for the others (GNU's runtime, which torch uses on Linux; about
# 300,000 by default). Where another program takes a core, long spinning slows a step tenfold and more; see
# docs/decisions.md.
SPIN_COUNT = "10000"


def main() -> None:
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    # Until the command line has its own handlers, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from batchgen.cli import app

    app(prog_name="batchgen")


if __name__ == "__main__":
    main()
