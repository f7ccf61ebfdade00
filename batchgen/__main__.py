"""Where the `batchgen` command starts, also as `python -m batchgen`."""

import os
import sys


def main() -> None:
    leave_working_folder()
    import signal

    # Until the command line has its own handlers, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from batchgen.machine.process import settle

    settle()
    from batchgen.cli import OWN_PROCESS, app

    app(prog_name="batchgen", obj=OWN_PROCESS)


def leave_working_folder() -> None:
    """`python -m batchgen` begins with the working directory: nothing more is imported from there.

    Unless this package itself is, as in a checkout of its sources. Exits in one line if the folder is gone.
    """
    try:
        here = os.getcwd()  # noqa: PTH109 - pathlib is not imported yet
    except OSError:
        sys.exit("batchgen: error: the working folder does not exist any more: cd to another one")
    if not sys.flags.safe_path and sys.path[0] == here and not __file__.startswith(here + os.sep):
        del sys.path[0]


if __name__ == "__main__":
    main()
