"""Judge whether a tokenizer.json may be used: inspect its parts, and try an unusual one in a child process.

Verdicts are kept by the file's hash, so only the first use of a tokenizer costs more than the hash. The child has
limits on memory and time, because the library's own code can be stopped by neither Ctrl-C nor an exception.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from batchgen.errors import ModelError, first_line
from batchgen.machine.children import safe_children
from batchgen.machine.kept import keep, read_kept
from batchgen.model.text_trial import limit_process
from batchgen.model.tokenizer_parts import find_harm, is_plain

Verdict = Literal["plain", "tried"]
FILE, RULES, MOST_KEPT = "tokenizers", 2, 500
LARGEST_READ_HERE = 32 * 2**20  # bytes; a file takes several times as much as Python objects
CHILD_BYTES, CHILD_CPU_S, CHILD_S = 3 * 2**30, 12, 18.0
LONG_RUN, SHORT_RUN = 2_000, 40  # repetitions of one character
WORDS = "My dog is 12,345.67 years old! \n\tIt's  raining…   Grüße, 東京 \U0001f600 <|endoftext|>"
SIGNS = "aZ0 .-_'\n\té東\u0301"
MOST_TOKENS = 8  # for each byte of the text


def judge_tokenizer(folder: Path) -> Verdict | None:
    """Return `plain`, or `tried` for an unusual tokenizer that passed its trial; None without a tokenizer.json.

    Raises `ModelError` for a harmful tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = path.read_bytes()
    key = f"{blake2b(content, digest_size=16).hexdigest()} {version('tokenizers')} {RULES}"
    kept = read_kept(FILE)
    if kept.get(key) in ("plain", "tried"):
        return kept[key]  # type: ignore[no-any-return]
    verdict = _judge(path, content)
    if len(kept) < MOST_KEPT:
        keep(FILE, {key: verdict})
    return verdict


def _judge(path: Path, content: bytes) -> Verdict:
    parts = _parse(content) if len(content) <= LARGEST_READ_HERE else None
    if parts is not None:
        if harm := find_harm(parts):
            raise _refusal(path, harm)
        if is_plain(parts):
            return "plain"
    if problem := try_in_child(path):
        raise _refusal(path, problem)
    return "tried"


def _refusal(path: Path, problem: str) -> ModelError:
    return ModelError(f"{path} is refused: {problem}. Use another model, or download it from its source")


def _parse(content: bytes) -> dict[str, Any] | None:
    """The parsed file; None if it is not a JSON object: the library will report what is wrong."""
    with suppress(ValueError, RecursionError):
        parts = json.loads(content)
        return parts if isinstance(parts, dict) else None
    return None


def try_in_child(path: Path) -> str | None:
    """Load and use a tokenizer in a process with limits; return what went wrong in a few words, or None."""
    command = [sys.executable, "-c", f"from {__name__} import main; main()", str(path.resolve())]
    try:
        with safe_children():
            ended = subprocess.run(command, capture_output=True, timeout=CHILD_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"it takes more than {CHILD_S:.0f} s to try"
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        limits = f"{CHILD_CPU_S} s or {CHILD_BYTES >> 30} GiB"
        return f"a process that tried it died (exit code {ended.returncode}; its limits are {limits})"
    return answer["problem"]  # type: ignore[no-any-return]


# In the child.


def main() -> None:
    """Try the tokenizer.json named on the command line, within limits, and print what is wrong with it as JSON."""
    limit_process(CHILD_BYTES, CHILD_CPU_S)
    path = Path(sys.argv[1])
    problem = None
    try:
        problem = _problem(path)
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        if isinstance(error, MemoryError):
            problem = f"it takes more than {CHILD_BYTES >> 30} GiB to try"
        else:
            problem = f"the tokenizer library fails on it: {first_line(error)}"
    print(json.dumps({"problem": problem}))


def _problem(path: Path) -> str | None:
    import tokenizers

    parts = json.loads(path.read_bytes())
    if harm := find_harm(parts):
        return harm
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text in trial_texts(parts):
        ids = tokenizer.encode(text).ids
        if len(ids) > MOST_TOKENS * len(text.encode()) + 64:
            return f"it turns {len(text):,} characters into {len(ids):,} tokens"
        tokenizer.decode(ids)
    if tokenizer.normalizer is not None and "precompiled_charsmap" in json.dumps(parts.get("normalizer")):
        return _problem_of_characters(tokenizer.normalizer)
    return None


def trial_texts(parts: Mapping[str, Any]) -> list[str]:
    """Ordinary text, and long runs of each character that the parts mention, which take patterns longest."""
    named = json.dumps({name: part for name, part in parts.items() if name in ("normalizer", "pre_tokenizer")})
    signs = dict.fromkeys(SIGNS + "".join(sorted(sign for sign in set(named) if sign.isalnum())))
    short = [sign * SHORT_RUN + end for sign in signs for end in ("", "!", "c")]
    return [WORDS, *short, *(sign * LONG_RUN + "!" for sign in SIGNS)]


def _problem_of_characters(normalizer: Any) -> str | None:
    """Run every character through a normalizer's binary replacement table; return what is wrong, or None."""
    for code in range(32, 0x10000):
        if not 0xD800 <= code < 0xE000 and len(normalizer.normalize_str(chr(code))) > MOST_TOKENS * 4:
            return f"its normalizer expands U+{code:04X}"
    return None
