"""What the fake engine answers, and thus what every output must contain, computed from the input alone.

Imports nothing of batchgen: a reference made by batchgen could not reveal a row that it always loses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

# What an answer depends on besides its prompt, with the command's defaults.
OPTIONS: dict[str, Any] = {"max_new_tokens": 50, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
Row = Mapping[str, Any]
Outcome = tuple[Any, ...]  # what `outcome_of` takes from a record


def answer(prompt: str, row_id: object, occurrence: int, sample: int, options: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text and its finish reason: the prompt again and a hash of everything, one token per character."""
    key = json.dumps([prompt, row_id, occurrence, sample, [options[name] for name in OPTIONS]]).encode()
    whole = f"{prompt} {blake2b(key, digest_size=8).hexdigest()}"
    most = options["max_new_tokens"]
    return whole[:most], "length" if len(whole) > most else "stop"


def expected(rows: Sequence[Row], *, num_samples: int = 1, **options: Any) -> Iterator[Outcome]:
    """Yield what must come out for rows of JSON Lines, in order, with these options of the command."""
    seen: Counter[object] = Counter()
    for index, row in enumerate(rows):
        own = {**OPTIONS, "num_samples": num_samples, **options, **(row.get("sampling") or {})}
        row_id = row.get("id", str(index))
        for sample in range(own["num_samples"]):
            text, reason = answer(row["prompt"], row_id, seen[row_id], sample, own)
            yield index, sample, row_id, row["prompt"], text, reason, None
        seen[row_id] += 1


def outcome_of(record: Row) -> Outcome:
    """Return the outcome of a record that came out."""
    names = ("index", "sample_index", "id", "prompt", "text", "finish_reason", "error")
    return tuple(record[name] for name in names)


def wrong(found: Sequence[Outcome], wanted: Sequence[Outcome]) -> str | None:
    """Return what is wrong with the outcomes: rows that are missing, duplicated, or not what they must be."""
    if len(found) != len(wanted):
        lost = [row[:2] for row in wanted if row[:2] not in {other[:2] for other in found}]
        return f"{len(wanted)} results must come out, and {len(found)} did; lost are {lost[:5]}"
    for one, other in zip(found, wanted, strict=True):
        if one != other:
            return f"row {one[:2]} is {str(one)[:300]}, and must be {str(other)[:300]}"
    return None


def wrong_lines(content: bytes, rows: Sequence[Row], *, num_samples: int = 1, **options: Any) -> str | None:
    """Return what is wrong with the JSON Lines that came out for these rows."""
    found = [outcome_of(json.loads(line)) for line in content.splitlines()]
    return wrong(found, list(expected(rows, num_samples=num_samples, **options)))
