"""A process that tries grammars, so that a grammar that takes all memory or never ends harms nothing else.

It runs as a script that imports nothing of batchgen: it reads one grammar per line and writes what is wrong with it.
"""

import json
import signal
import sys
from contextlib import suppress


def set_clock(seconds: float) -> None:
    """End this process after `seconds` of processor time, whatever it is doing then; 0 stops the clock."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answer each line of standard input with one line: an error, or an empty string."""
    settings = json.loads(sys.stdin.readline())
    sys.path[:] = settings["path"]
    with suppress(ImportError):  # Windows has no such limits
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
