"""Suggest the option that an unknown name probably means. Knows other programs' names for generation options."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

OTHER_NAMES = {
    "max_tokens": "max_new_tokens", "max_length": "max_new_tokens", "max_completion_tokens": "max_new_tokens",
    "max_output_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "min_length": "min_new_tokens",
    "n": "num_samples", "best_of": "num_beams", "num_return_sequences": "num_samples", "temp": "temperature",
    "stop_strings": "stop", "stop_sequences": "stop", "torch_dtype": "dtype", "random_seed": "seed",
    "ngram_size": "no_repeat_ngram_size", "response_format": "json_schema", "guided_json": "json_schema",
    "schema": "json_schema", "guided_regex": "regex", "choices": "choice", "guided_choice": "choice",
    "guided_grammar": "grammar",
}  # fmt: skip
LIKENESS = 0.75
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def plain_name(name: str) -> str:
    """Convert a name to the spelling of fields.
    >>> plain_name("maxTokens"), plain_name("max-new-tokens"), plain_name(" Top_P ")
    ('max_tokens', 'max_new_tokens', 'top_p')
    """
    return HUMP.sub("_", name.strip()).lower().replace("-", "_")


def near_name(name: str, names: Collection[str]) -> str | None:
    """The one of `names` that was probably meant: in another spelling, by another program's name, or misspelled.
    >>> near_name("maxTokens", ["max_new_tokens", "seed"]), near_name("api_key", ["top_k"])
    ('max_new_tokens', None)
    """
    plain = plain_name(name)
    if plain in names:
        return plain
    near = OTHER_NAMES.get(plain) or next(iter(get_close_matches(plain, names, n=1, cutoff=LIKENESS)), None)
    return near if near in names else None
