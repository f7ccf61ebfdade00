"""Whether constrained rows meet their constraints, do not depend on their batch, and do not affect other rows.

    python benchmarks/constraints.py MODEL [--checks valid beside batches] [--dtype bfloat16] [--rows-each 5]

`constraints.jsonl` has 60 JSON schemas like those of configuration files, messages and forms, 40 regular expressions,
20 lists of choices and 5 grammars. Python's `re` and jsonschema judge the texts. Exits with 4 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jsonschema

import batchgen
from batchgen import Model, Result

CATALOGUE = [json.loads(line) for line in Path(__file__).with_name("constraints.jsonl").open(encoding="utf-8")]
KINDS = ("json_schema", "regex", "choice", "grammar")
ASKED = (
    "Write an example of {of}.",
    "Give me {of}, please. No comments.",
    "I need {of} for a test. What would it look like?",
    "My uncle collects {of} and similar things. Invent one for him.",
    "{of}",
)
TEMPERATURES = (0.0, 1.0)
LONGEST = {"json_schema": 240, "regex": 60, "choice": 20, "grammar": 60}  # tokens
# RFC 3339 allows a lower-case z after a time; jsonschema does not.
FORMATS = jsonschema.FormatChecker(["date", "uuid", "ipv4", "email"])


def main() -> None:
    checks = {"valid": valid, "beside": beside, "batches": batches}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--checks", nargs="*", choices=[*checks], default=[*checks])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows-each", type=int, default=5)
    parser.add_argument("--rows", type=int, default=60)
    given = parser.parse_args()
    model = batchgen.open_model(given.model, device="cpu", dtype=given.dtype)
    is_fine = [checks[name](model, given) for name in given.checks]
    sys.exit(0 if all(is_fine) else 4)


def options_of(model: Model) -> dict[str, Any]:
    return {"model": model, "chat": bool(model.checkpoint.tokenizer.chat_template)}


def kind_of(entry: dict[str, Any]) -> str:
    return next(kind for kind in KINDS if kind in entry)


def fits(entry: dict[str, Any], text: str) -> bool:
    """Whether a finished text meets its constraint."""
    kind = kind_of(entry)
    if kind == "choice":
        return text in entry["choice"]
    if kind != "json_schema":
        return re.fullmatch(entry.get("same_as") or entry["regex"], text) is not None
    schema = entry["json_schema"]
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        return bool(validator(schema, format_checker=FORMATS).is_valid(json.loads(text)))
    except ValueError:
        return False


def row_of(entry: dict[str, Any], place: int, number: int, temperature: float) -> dict[str, Any]:
    kind = kind_of(entry)
    sampling = {kind: entry[kind], "temperature": temperature, "max_new_tokens": LONGEST[kind]}
    prompt = ASKED[number % len(ASKED)].format(of=entry["of"])
    return {"id": f"{place} {number} {temperature}", "prompt": prompt, "sampling": sampling}


# Every row that stopped meets its constraint.


def valid(model: Model, given: argparse.Namespace) -> bool:
    rows = [
        (entry, row_of(entry, place, number, temperature))
        for temperature in TEMPERATURES
        for place, entry in enumerate(CATALOGUE)
        for number in range(given.rows_each)
    ]
    counts: Counter[tuple[str, float, str]] = Counter()
    for result in batchgen.stream([row for _, row in rows], **options_of(model)):
        entry, row = rows[result.index]
        found = judged(entry, result)
        counts[kind_of(entry), row["sampling"]["temperature"], found] += 1
        if found in ("wrong", "failed"):
            print(f"{found}: {entry['of']}: {result.error or result.text!r}", flush=True)
        if counts.total() % 50 == 0:
            print(f"{counts.total()} of {len(rows)} rows", file=sys.stderr, flush=True)
    for kind in KINDS:
        for temperature in TEMPERATURES:
            own = {found: counts[kind, temperature, found] for found in ("fits", "cut short", "wrong", "failed")}
            print(
                f"{kind}, temperature {temperature:g}: " + ", ".join(f"{count} {found}" for found, count in own.items())
            )
    return not any(count for (_, _, found), count in counts.items() if found in ("wrong", "failed"))


def judged(entry: dict[str, Any], result: Result) -> str:
    if result.error:
        return "failed"
    if result.finish_reason == "length":
        return "cut short" if result.parsed is None else "wrong"
    is_parsed = kind_of(entry) != "json_schema" or result.parsed == json.loads(result.text)
    return "fits" if fits(entry, result.text) and is_parsed else "wrong"


# Rows do not affect each other.


def mixed(number: int) -> list[dict[str, Any]]:
    """Return rows of all kinds and some without a constraint, half of them sampled, none of them long."""
    draw = random.Random(0)
    rows = []
    for place in range(number):
        entry, temperature = draw.choice(CATALOGUE), float(place % 2)
        row = row_of(entry, place, draw.randrange(len(ASKED)), temperature)
        row["sampling"] |= {"max_new_tokens": draw.randint(8, 40), "seed": place}
        if place % 3 == 0:
            del row["sampling"][kind_of(entry)]
        rows.append(row)
    return rows


def texts(results: Iterable[Result]) -> dict[str, tuple[str, list[int]]]:
    return {str(result.id): (result.text, list(result.output_ids)) for result in results}


def is_free(row: dict[str, Any]) -> bool:
    return not any(kind in row["sampling"] for kind in KINDS)


def beside(model: Model, given: argparse.Namespace) -> bool:
    """Compare rows without a constraint, alone and beside constrained ones."""
    rows = mixed(given.rows)
    free = [row for row in rows if is_free(row)]
    alone, among = (
        texts(batchgen.generate(free, **options_of(model))),
        texts(batchgen.generate(rows, **options_of(model))),
    )
    same = sum(among[name] == answer for name, answer in alone.items())
    print(f"rows without a constraint beside constrained ones: {same} of {len(free)} unchanged")
    return same == len(free)


def batches(model: Model, given: argparse.Namespace) -> bool:
    """Compare the same rows one at a time with 7 and 64 at a time, shuffled, and resumed after a third of them."""
    rows, options = mixed(given.rows), options_of(model)
    wanted = texts(batchgen.generate(rows, **options, batch_size=1))
    shuffled = random.Random(1).sample(rows, len(rows))
    ways: dict[str, Callable[[], Iterable[Result]]] = {
        "7 at a time": lambda: batchgen.generate(rows, **options, batch_size=7),
        "64 at a time": lambda: batchgen.generate(rows, **options, batch_size=64),
        "7 at a time, shuffled": lambda: batchgen.generate(shuffled, **options, batch_size=7),
        "64 at a time, shuffled": lambda: batchgen.generate(shuffled, **options, batch_size=64),
        "reference, 7 at a time": lambda: batchgen.generate(rows, **options, engine="reference", batch_size=7),
    }
    is_fine = True
    for name, way in ways.items():
        found = texts(way())
        same = sum(found[key] == answer for key, answer in wanted.items())
        print(f"{name}: {same} of {len(rows)} rows as one at a time", flush=True)
        is_fine &= same == len(rows)
    return is_fine and resumed(options, rows, wanted)


def resumed(options: dict[str, Any], rows: list[dict[str, Any]], wanted: dict[str, tuple[str, list[int]]]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        lines, output = Path(folder) / "rows.jsonl", Path(folder) / "out.jsonl"
        for part in (rows[: len(rows) // 3], rows):
            lines.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
            batchgen.run(lines, output=output, **options, keep_store=True, resume=output.exists())
        found = {record["id"]: record["text"] for record in map(json.loads, output.open(encoding="utf-8"))}
    same: int = sum(found.get(key) == text for key, (text, _) in wanted.items())
    print(f"resumed after a third: {same} of {len(rows)} rows as one at a time", flush=True)
    return same == len(rows)


if __name__ == "__main__":
    main()
