"""A tokenizer that is unusual, used with care: one that takes too long ends the run, what it panics at fails a row.

Its library answers neither to Ctrl-C nor to time: it works in a thread that this one waits for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from batchgen.errors import BatchgenError, ModelError, first_line, is_panic
from batchgen.model.tokenizer import Tokenizer

T = TypeVar("T")

PATIENCE_S, CHARACTERS_PER_S = 12.0, 50_000  # slower than any tokenizer on any machine
_ONE_AT_A_TIME = threading.Lock()
LOOK_S = 0.1  # how often a thread that waits may be interrupted


class TokenizerFailure(ValueError):  # noqa: N818 - a row's fault, told in its error
    """A text that the tokenizer chokes on."""


class GuardedTokenizer:
    """Has all that the tokenizer has; encoding is timed, and neither encoding nor decoding panics."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self.tokenizer = tokenizer
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # while it is copied
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __call__(self, text: Any, **options: Any) -> Mapping[str, Any]:
        """Raises `ModelError` where it takes too long, since nothing can stop it."""
        size = len(text) if isinstance(text, str) else sum(map(len, text))
        ended = _in_thread(lambda: self.tokenizer(text, **options), PATIENCE_S + size / CHARACTERS_PER_S)
        if ended is None:
            raise ModelError(
                f"the tokenizer of {self._name} takes more than {PATIENCE_S:.0f} s for {size:,} characters: "
                "its tokenizer.json has a pattern that backtracks without end; use another model"
            )
        return ended

    def decode(
        self, token_ids: list[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        with quiet_panics():
            return self.tokenizer.decode(
                token_ids,
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            )


def _in_thread(work: Callable[[], T], seconds: float) -> T | None:
    """What `work` gives or raises; None where it takes longer than that."""
    ended: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            ended.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised again below
            ended.append((None, error))

    with quiet_panics():
        thread = threading.Thread(target=run, daemon=True, name="tokenizer")
        thread.start()
        while seconds > 0 and thread.is_alive():
            thread.join(LOOK_S)
            seconds -= LOOK_S
        if not ended:
            return None
        result, error = ended[0]
        if error is not None:
            raise error
        return result


@contextmanager
def quiet_panics() -> Iterator[None]:
    """Keeps what the library writes when it panics off standard error, and makes an exception of the panic."""
    with _ONE_AT_A_TIME:
        yield from _quietly()


def _quietly() -> Iterator[None]:
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    except BaseException as error:
        if is_panic(error):
            raise TokenizerFailure(f"the tokenizer fails on this text:  {first_line(error)}") from None
        raise
    finally:
        os.dup2(before, 2)
        os.close(before)


def is_choke(error: BaseException) -> bool:
    """Whether a text was too much for a tokenizer's library, rather than for this process or its user."""
    return (isinstance(error, Exception) and not isinstance(error, BatchgenError | MemoryError)) or is_panic(error)


def each_or_why(texts: list[str], encode: Callable[[list[str]], list[list[int]]]) -> list[list[int] | str]:
    """The token ids of each text, or why the tokenizer chokes on it: then each is tried alone, so that others go on."""
    try:
        return list(encode(texts))
    except BaseException as error:
        if not is_choke(error):
            raise
        if len(texts) == 1:
            is_told = isinstance(error, TokenizerFailure)
            return [str(error) if is_told else f"the tokenizer fails on this text:  {first_line(error)}"]
    return [found for text in texts for found in each_or_why([text], encode)]
