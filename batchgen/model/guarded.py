"""A guarded tokenizer: a text that takes it too much time or memory, or makes it panic, fails only its row.

The tokenizers library can be interrupted by neither Ctrl-C nor a timeout. Texts for an unusual tokenizer, and very
long texts for any other, are therefore tried in a process with limits before they are encoded here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from batchgen.errors import BatchgenError, ModelError, first_line, is_panic
from batchgen.model.text_trial import TextTrial
from batchgen.model.tokenizer import Tokenizer

T = TypeVar("T")

PATIENCE_S, CHARACTERS_PER_S = 12.0, 50_000  # slower than any tokenizer on any machine
_ONE_AT_A_TIME = threading.Lock()
LOOK_S = 0.1  # how often a waiting thread can be interrupted
LONG_TEXT = 131_072  # characters; any plain tokenizer takes about 0.1 s and 500 MiB for it
AT_ONCE = 131_072  # characters whose tokens are held in memory at a time, besides the results


class TokenizerFailure(ValueError):  # noqa: N818 - a fault of a row, reported in its error
    """The tokenizer cannot process a text."""


class Guard:
    """Raises `TokenizerFailure` for texts that must not be given to the tokenizer with this JSON."""

    def __init__(self, tokenizer_json: Callable[[], str], *, is_plain: bool) -> None:
        self._json = tokenizer_json
        self._is_plain = is_plain
        self._trial: TextTrial | None = None

    def check(self, texts: Sequence[str], *, split_special: bool = False) -> None:
        for text in texts:
            if not self.watches(text):
                continue
            self._trial = self._trial or TextTrial(self._json())
            try:
                problem = self._trial.problem_of(text, split_special=split_special)
            except OSError as error:
                problem = f"no process can be started to try it in: {first_line(error)}"
            if problem:
                raise TokenizerFailure(f"the tokenizer fails on this text: {problem}")

    def watches(self, text: str) -> bool:
        return not self._is_plain or len(text) > LONG_TEXT


class GuardedTokenizer:
    """A tokenizer with a guard; with `is_plain`, only very long texts are checked. Delegates everything else."""

    def __init__(self, tokenizer: Tokenizer, name: str, *, is_plain: bool = False) -> None:
        self.tokenizer = tokenizer
        self._name = name
        self._is_plain = is_plain
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._guard = None if backend is None else self.guard_of(backend)

    def guard_of(self, backend: Any) -> Guard:
        """The guard for another form of the same tokenizer."""
        return Guard(backend.to_str, is_plain=self._is_plain)

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # while the object is being copied
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __call__(self, text: Any, **options: Any) -> Mapping[str, Any]:
        """Encode. Raises `TokenizerFailure` for a text that fails its trial, `ModelError` if encoding then hangs."""
        texts = [text] if isinstance(text, str) else text
        if self._guard is not None:
            if not any(map(self._guard.watches, texts)):
                return self.tokenizer(text, **options)
            self._guard.check(texts, split_special=bool(options.get("split_special_tokens")))
        size = sum(map(len, texts))
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
        with nullcontext() if self._is_plain else quiet_panics():
            return self.tokenizer.decode(
                token_ids,
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            )


def _in_thread(work: Callable[[], T], seconds: float) -> T | None:
    """What `work` returns or raises; None if it takes longer than `seconds`."""
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
    """Hide what the library prints to stderr when it panics, and raise the panic as `TokenizerFailure`."""
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
            raise TokenizerFailure(f"the tokenizer fails on this text: {first_line(error)}") from None
        raise
    finally:
        os.dup2(before, 2)
        os.close(before)


def is_choke(error: BaseException) -> bool:
    """Whether an error means that the tokenizer library failed on a text: not batchgen, memory, or Ctrl-C."""
    return (isinstance(error, Exception) and not isinstance(error, BatchgenError | MemoryError)) or is_panic(error)


def each_or_why(texts: list[str], encode: Callable[[list[str]], list[list[int]]]) -> list[list[int] | str]:
    """Token ids of each text, or why the tokenizer fails on it; encodes about `AT_ONCE` characters at a time."""
    return [found for some in _in_parts(texts) for found in _each_or_why(some, encode)]


def _in_parts(texts: list[str]) -> Iterator[list[str]]:
    part, size = list[str](), 0
    for text in texts:
        if part and size + len(text) > AT_ONCE:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


def _each_or_why(texts: list[str], encode: Callable[[list[str]], list[list[int]]]) -> list[list[int] | str]:
    """Encode the texts together; if that fails, encode each one alone, so that only the bad ones fail."""
    try:
        return list(encode(texts))
    except BaseException as error:
        if not is_choke(error):
            raise
        if len(texts) == 1:
            is_told = isinstance(error, TokenizerFailure)
            return [str(error) if is_told else f"the tokenizer fails on this text: {first_line(error)}"]
    return [found for text in texts for found in _each_or_why([text], encode)]
