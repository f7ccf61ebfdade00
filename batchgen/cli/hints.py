"""Suggestions for unknown options and commands; if nothing is close enough, they are empty."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

MOST = 3
LIKENESS = 0.8
# Names that other programs use for an option.
ELSEWHERE = {
    "--n": "--num-samples", "--n-predict": "--max-new-tokens", "--max-tokens": "--max-new-tokens",
    "--max-length": "--max-new-tokens", "--num-return-sequences": "--num-samples", "--best-of": "--num-samples",
    "--beams": "--num-beams", "--beam-size": "--num-beams", "--do-sample": "--temperature", "--gpu": "--device",
    "--gpus": "--device", "--cuda": "--device", "--precision": "--dtype", "--force": "--overwrite",
    "--outfile": "--output", "--max-len": "--max-new-tokens", "--json": "--format", "--jsonl": "--format",
    "--csv": "--format", "--tsv": "--format", "--parquet": "--format", "-m": "--model",
}  # fmt: skip
# Short names for the choices of an option.
SHORT = {
    "f32": "float32", "f16": "float16", "half": "float16", "bf16": "bfloat16",
    "ndjson": "jsonl", "txt": "text", "db": "sqlite",
}  # fmt: skip
ADAPTERS = ("--adapter", "--adapters", "--lora", "--lora-modules", "--lora-path", "--peft")
INPUTS = ("-f", "-i", "--input", "--inputs", "--file", "--files", "--prompts")


def option_hint(given: str, command: str, words: Sequence[str], flags: Mapping[str, Sequence[str]]) -> str:
    """Return a hint for an option that `command` does not know; often empty.

    If `command` is empty, the option stands before any command. `words` are all words typed, `flags` the options of
    each command.
    """
    if not command:
        return _too_early(given, words, flags)
    given = _typed(given, words)
    if given in INPUTS:
        return f" (inputs have no flag: batchgen {command} FILE)"
    if given in ADAPTERS:
        return " (LoRA adapters are not supported: merge yours into its model, and give that folder to --model)"
    if near := near_options(given, flags[command]):
        return f" (did you mean {either(near)}?)"
    owners = [name for name in flags if given in flags[name]]
    return f" (it belongs to {either(owners, 'and')})" if owners else ""


def _too_early(given: str, words: Sequence[str], flags: Mapping[str, Sequence[str]]) -> str:
    """Return a hint for an option that stands before the command."""
    place = next((word for word in words if word in flags), None)
    command = place or "run"
    if command not in flags:
        return ""
    near = [given] if given in flags[command] else near_options(given, flags[command])
    if not near:
        return ""
    if near == [given]:
        return f" (put {given} after {command})" if place else f" (it belongs to run: batchgen run {given} …)"
    return f" (did you mean {either(near)}, after {command}?)"


def _typed(given: str, words: Sequence[str]) -> str:
    """Restore `--model` from `-model`, of which typer reports only `-m`."""
    if given.startswith("--"):
        return given
    whole = next((word for word in words if word.startswith(given) and len(word) > len(given) + 1), "")
    return f"-{whole.partition('=')[0]}" if whole else given


def near_options(given: str, flags: Iterable[str]) -> list[str]:
    """Return the options that were probably meant, of the best matching kind only.

    The kinds, in order: same letters apart from dashes or case, another program's name for it, flags that start with
    it, flags that contain all its words, flags that it extends, a similar spelling.

    >>> near_options("--temp", ["--help", "--stop", "--temperature"])
    ['--temperature']
    >>> near_options("--api-key", ["--top-k"])
    []
    """
    long = [flag for flag in dict.fromkeys(flags) if flag.startswith("--") and flag != "--help"]
    name = given.lower().replace("_", "-")
    if name in long:
        return [name]
    if len(name) < len("--") + 1 and name not in ELSEWHERE:
        return []
    meant = {letters(other): flag for other, flag in [*ELSEWHERE.items(), *zip(long, long, strict=True)]}
    if (flag := meant.get(letters(name))) in long:
        return [flag]
    if len(name) < len("--x"):
        return []
    words = set(name.strip("-").split("-"))
    kinds = (
        [flag for flag in long if flag.startswith(name)],
        [flag for flag in long if words <= set(flag.strip("-").split("-"))],
        [flag for flag in long if name.startswith(f"{flag}-")],
        get_close_matches(name.strip("-"), [flag.strip("-") for flag in long], n=1, cutoff=LIKENESS),
    )
    return [f"--{flag.strip('-')}" for flag in next(filter(None, kinds), [])][:MOST]


def choice_hint(reason: str) -> str:
    """Return a hint for a value that is not among the choices of an option, from typer's message; often empty.

    >>> choice_hint("Invalid value for '--dtype': 'bf16' is not one of 'auto', 'float32', 'bfloat16'")
    ' (did you mean bfloat16?)'
    """
    given, found, listed = reason.rpartition("' is not one of ")
    if not found:
        return ""
    given, choices = given.rpartition("'")[2].lower().replace("fp", "f"), re.findall("'([^']*)'", listed)
    digits = re.sub(r"\D", "", given)
    like = [choice for choice in choices if re.sub(r"\D", "", choice) == digits]
    near = (
        [choice for choice in choices if choice in (given, SHORT.get(given))]
        or [choice for choice in like if len(given) > 1 and choice.startswith(given)]
        or get_close_matches(given, like, n=1, cutoff=LIKENESS)
    )
    return f" (did you mean {near[0]}?)" if len(near) == 1 else ""


def letters(flag: str) -> str:
    """Return a flag without its dashes, which people omit or put elsewhere."""
    return flag.replace("-", "")


def command_hint(given: str, commands: Sequence[str]) -> str:
    """Return a hint for an unknown command; often empty."""
    if near := get_close_matches(given.lower(), commands, n=1, cutoff=0.6):
        return f" (did you mean {near[0]}?)"
    try:
        is_file = Path(given).exists()
    except (OSError, ValueError):
        is_file = False
    return f" (to continue its prompts: batchgen run {given})" if is_file else ""


def either(words: Sequence[str], link: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`."""
    *others, last = words
    return f"{', '.join(others)} {link} {last}" if others else last
