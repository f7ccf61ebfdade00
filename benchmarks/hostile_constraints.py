"""What hostile constraints do: 20 that never end, take all memory, use what is not supported, or that no text can meet.

    python benchmarks/hostile_constraints.py MODEL
    python benchmarks/hostile_constraints.py OPENVINO_MODEL --peer openvino

Each one is a row beside a row without a constraint, in its own process. batchgen must end, possibly with a one-line
error, within 20 s and 1 GiB more than the other row takes alone, and must answer that other row; the exit code is 4 if
it does not. A peer may take 60 s and 4 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import psutil

MOST_S, MOST_BYTES = 20, 2**30
PATIENCE_S, PEER_BYTES = 60, 4 * 2**30
FREE = "The capital of France is"


@dataclass(frozen=True, slots=True)
class Hostile:
    """A constraint that takes too long or too much memory, or that no text can meet."""

    name: str
    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class Ran:
    """How a process ended, what it wrote, how long it took, and the peak memory of it and its children."""

    code: int | None
    output: str
    errors: str
    seconds: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--peer", choices=["openvino"])
    parser.add_argument("--python", default=sys.executable, help="of the peer")
    parser.add_argument("--in-peer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.in_peer:
        in_openvino(given.model, json.loads(given.in_peer))
    elif given.peer:
        peer(given.python, given.model)
    else:
        sys.exit(0 if ours(given.model) else 4)


def hostile_ones() -> list[Hostile]:
    product: Any = {"allOf": [{"anyOf": [{"properties": {f"{i} {j}": {}}} for j in range(20)]} for i in range(20)]}
    doubling = {
        f"l{i}": {"anyOf": [{"items": {"$ref": f"#/$defs/l{i + 1}"}, "minItems": n} for n in (1, 2)]} for i in range(40)
    }
    nested: Any = {"type": "integer"}
    for _ in range(200):
        nested = {"type": "array", "items": nested}
    itself = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}
    schemas = {
        "reference to itself": {"$ref": "#"},
        "circle of references": {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        },
        "remote reference": {"$ref": "https://example.org/schema.json"},
        "reference to a file": {"$ref": "file:///etc/hostname"},
        "missing definition": {"$ref": "#/$defs/none"},
        "bounds that contradict": {"type": "integer", "minimum": 5, "maximum": 3},
        "empty enum": {"enum": []},
        "required and forbidden": {"type": "object", "properties": {"a": False}, "required": ["a"]},
        "object inside itself without end": {"$ref": "#/$defs/a", "$defs": {"a": itself}},
        "unsupported keyword": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        "pattern that looks ahead": {"type": "string", "pattern": "^(?!a)b"},
        "product of alternatives": product,
        "alternatives that double": {"$ref": "#/$defs/l0", "$defs": {**doubling, "l40": {"uniqueItems": True}}},
        "200 levels": nested,
        "100 million items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**8},
    }
    brackets = "start: " + "(" * 200_000 + '"a"' + ")" * 200_000
    return [
        *(Hostile(name, "json_schema", schema) for name, schema in schemas.items()),
        Hostile("repetitions of repetitions", "regex", "((a{0,1000}){0,1000}){0,1000}b"),
        Hostile("states that double", "regex", "(.*a.{60}|.*b.{61}|.*c.{62})+x"),
        Hostile("expression that looks ahead", "regex", "(?=a)b"),
        Hostile("200,000 brackets", "grammar", brackets),
        Hostile("unknown rule", "grammar", "start: item\nitem: nothing"),
    ]  # fmt: skip


# batchgen.


def ours(model: str) -> bool:
    plain = run_batchgen(model, [])
    print(f"without one: {plain.seconds:.1f} s, {plain.peak_bytes / 2**20:,.0f} MiB", flush=True)
    wanted = json.loads(plain.output)["text"]
    held = [holds(one, plain, wanted, run_batchgen(model, [one])) for one in hostile_ones()]
    return all(held)


def holds(one: Hostile, plain: Ran, wanted: str, found: Ran) -> bool:
    rows = {row["id"]: row for row in map(json.loads, found.output.splitlines())}
    bound = rows.get("hostile", {"error": None, "finish_reason": "missing"})
    error = bound["error"] or ""
    seconds, more = found.seconds - plain.seconds, found.peak_bytes - plain.peak_bytes
    has_ended = "\n" not in error and len(error) < 400 if error else bound["finish_reason"] in ("length", "stop")
    is_fine = has_ended and rows["free"]["text"] == wanted and seconds < MOST_S and more < MOST_BYTES
    said = error or f"{bound['finish_reason']}: {bound.get('text', found.errors[-300:])!r}"
    print(
        f"{'ok' if is_fine else 'FAILS'}: {one.name}: {said[:300]} ({seconds:+.1f} s, {more / 2**20:+,.0f} MiB)",
        flush=True,
    )
    return is_fine


def run_batchgen(model: str, ones: list[Hostile]) -> Ran:
    rows: list[dict[str, Any]] = [{"id": "free", "prompt": FREE}]
    rows += [{"id": "hostile", "prompt": "a", "sampling": {one.kind: one.value}} for one in ones]
    command = [
        "-m",
        "batchgen",
        "run",
        "-",
        "--model",
        model,
        "--no-chat",
        "--format",
        "jsonl",
        "--max-new-tokens",
        "8",
    ]
    return run([sys.executable, *command], "".join(json.dumps(row) + "\n" for row in rows), None, 120)


# A peer.


def peer(python: str, model: str) -> None:
    for one in hostile_ones():
        asked = json.dumps({"kind": one.kind, "value": one.value})
        if len(asked) > 100_000:
            asked = json.dumps({"kind": one.kind, "name": one.name})
        found = run([python, __file__, model, "--in-peer", asked], "", PEER_BYTES, PATIENCE_S)
        lines = [line for line in (found.output + found.errors).splitlines() if line.strip()]
        ended = "killed by the clock" if found.code is None else f"exit {found.code}"
        took = f"{found.seconds:.1f} s, {found.peak_bytes / 2**20:,.0f} MiB"
        print(f"{one.name}: {ended}, {took}: {lines[-1][:300] if lines else ''}", flush=True)


def in_openvino(model: str, asked: dict[str, Any]) -> None:
    """Run in the peer's process: both rows in one call."""
    import openvino_genai as genai  # type: ignore[import-not-found]

    value = asked.get("value") or next(one.value for one in hostile_ones() if one.name == asked["name"])
    key = {"json_schema": "json_schema", "regex": "regex", "grammar": "grammar"}[asked["kind"]]
    pipe = genai.ContinuousBatchingPipeline(model, genai.SchedulerConfig(), "CPU")
    free, bound = genai.GenerationConfig(max_new_tokens=8), genai.GenerationConfig(max_new_tokens=20)
    text = json.dumps(value) if key == "json_schema" else value
    bound.structured_output_config = genai.StructuredOutputConfig(**{key: text})
    for result in pipe.generate([FREE, "a"], [free, bound]):
        print(repr(result.m_generation_ids), end=" ")


# Processes.


def run(command: list[str], given: str, most_bytes: int | None, patience_s: float) -> Ran:
    """Run a command with standard input, and return how it went; its code is None if it took too long."""

    def limit() -> None:
        if most_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))

    started = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as source,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        source.write(given)
        source.seek(0)
        process = subprocess.Popen(command, stdin=source, stdout=output, stderr=errors, preexec_fn=limit)
        peak = 0
        while process.poll() is None and time.perf_counter() - started < patience_s:
            peak = max(peak, resident(process.pid))
            time.sleep(0.02)
        code = process.poll()
        process.kill()
        process.wait()
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        return Ran(code, output.read(), errors.read(), seconds, peak)


def resident(pid: int) -> int:
    """Return the bytes that a process and its children hold."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:
        pass
    return total


if __name__ == "__main__":
    main()
