"""A process that tries grammars, so that one that takes all memory or never ends takes nothing else with it.

Is run as a file, with nothing of batchgen: a grammar a line comes in, what is wrong with it goes out.
"""

import json
import signal
import sys
from contextlib import suppress


def set_clock(seconds: float) -> None:
    """Ends this process after so many seconds of processor time, wherever it is then; 0 stops the clock."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answers each line of standard input with one: an error, or an empty text."""
    settings = json.loads(sys.stdin.readline())
    sys.path[:] = settings["path"]
    with suppress(ImportError):  # no such limits on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (settings["bytes"], settings["bytes"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    tokenizer = LLTokenizer("byte")
    for line in sys.stdin:
        set_clock(settings["seconds"])
        matcher = LLMatcher(tokenizer, json.loads(line), log_level=0, limits=LLParserLimits(**settings["limits"]))
        if not matcher.is_error():
            matcher.compute_bitmask()
        set_clock(0)
        sys.stdout.write(json.dumps(matcher.get_error() if matcher.is_error() else "") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
