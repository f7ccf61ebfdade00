"""Where the `batchgen` command starts, also as `python -m batchgen`."""

import signal


def main() -> None:
    # Until the command line has its own handlers, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from batchgen.machine.process import settle

    settle()
    from batchgen.cli import OWN_PROCESS, app

    app(prog_name="batchgen", obj=OWN_PROCESS)


if __name__ == "__main__":
    main()
