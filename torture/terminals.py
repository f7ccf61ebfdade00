"""Text that could move a cursor, set a clipboard or fake a line, in every place that text can come from, on a terminal.

The terminal is dumb and without colours, so no control byte is legitimate except the line end.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect

from torture.commands import ENVIRONMENT, FAKE, PATIENCE_S, run, write_jsonl
from torture.lab import Check, Lab, Trial, Tried

WIDTH = 200
CASES = 300
MARK = "MARK"  # shows that a payload was shown at all
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Grouped as CSI, OSC (title, hyperlink, clipboard), DCS, APC, single characters, C1, Unicode, rich.
PAYLOADS = [
    "\x1b[31mred", "\x1b[2J\x1b[H", "\x1b[1A\x1b[2Kbatchgen: all is well", "\x1b[6n", "\x1b[21t", "\x1b[?1049h",
    "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "\x1b]52;c;ZXZpbA==\x07", "\x1b]4;1;?\x1b\\",
    "\x1bP+q544e\x1b\\", "\x1b_Gi=1\x1b\\", "\x1b^pm\x1b\\", "\x1bc", "\x1b(0", "\x1b#8",
    "\x07", "\b\b\b\b", "\0", "\x7f", "over\rwritten", "\x0b", "\x0c", "\x0e\x0f", "\x05", "\x1a", "\x1b",
    "\x9b31m", "\x9d0;t\x9c", "\x90q\x9c", "\x85", "\x84", "\x8d", "\u202egnirts", "\u2066a\u2069", "\u200f\u200e",
    "\u061c", "\u2028", "\u2029", "\r\nbatchgen: error: none",
    "[bold red]x[/bold red]", "[/]", "[/foo]", "[link=http://x]y[/link]", "[blink]", "[@click=app.bell]z[/]", "\\[x]",
    ":smile:", "[", "{}", "%s%n",
]  # fmt: skip
IS_PLAIN = re.compile(r"[ -~]+")  # to be shown as it is


@dataclass(frozen=True, slots=True)
class Surface:
    """A place that text comes from: builds a command line from a payload, in a folder; and what it must show of it."""

    name: str
    arguments: Callable[[str, Path], list[str]]
    codes: tuple[int, ...] = (0,)
    shows: bool = True
    ends_at: str | None = None  # the parser of command lines takes the rest of a payload as another argument


def as_word(payload: str) -> str:
    """Return the part of a payload that can be an argument or a file name."""
    return MARK + payload.replace("\0", "").replace("/", "")


def rows_file(folder: Path, row: dict[str, object]) -> str:
    write_jsonl(folder / "rows.jsonl", [{"prompt": "first"}, row])
    return "rows.jsonl"


def prompt_in(form: str) -> Callable[[str, Path], list[str]]:
    def arguments(payload: str, folder: Path) -> list[str]:
        return [rows_file(folder, {"prompt": MARK + payload}), "--format", form, "--max-new-tokens", "200"]

    return arguments


def row(**fields: Callable[[str], object]) -> Callable[[str, Path], list[str]]:
    """A row with the payload in some field, on the terminal as a table."""

    def arguments(payload: str, folder: Path) -> list[str]:
        made = {name: make(payload) for name, make in fields.items()}
        return [rows_file(folder, {"prompt": "x"} | made), "--format", "table"]

    return arguments


def named_file(payload: str, folder: Path) -> str:
    name = as_word(payload) + ".jsonl"
    (folder / name).write_text("nonsense\n")
    return name


def option(*arguments: str) -> Callable[[str, Path], list[str]]:
    """A prompt, and options in which `{}` stands for the payload."""
    return lambda payload, folder: ["-p", "x", *(part.replace("{}", as_word(payload)) for part in arguments)]


SURFACES = [
    Surface("prompt and output, table", prompt_in("table")),
    Surface("prompt and output, jsonl", prompt_in("jsonl")),
    Surface("output, text", prompt_in("text")),
    Surface("id, table", row(id=lambda payload: MARK[:2] + payload), shows=False),
    Surface("id of a failed row", row(id=lambda payload: MARK + payload, prompt=lambda _: 1), codes=(3,)),
    Surface("unknown option of a row", row(sampling=lambda payload: {MARK + payload: 1}), codes=(3,)),
    Surface("column", lambda payload, folder: [rows_file(folder, {"prompt": "x", MARK: payload}), "--format", "jsonl"]),
    Surface("column's name", lambda payload, folder: [
        rows_file(folder, {"prompt": "x", MARK + payload: 1}), "--format", "jsonl"]),
    Surface("input that is not there", lambda payload, folder: [as_word(payload)], codes=(1,)),
    Surface("input with a bad row", lambda payload, folder: [named_file(payload, folder)], codes=(3,)),
    Surface("input of an unknown kind", lambda payload, folder: [
        str(_touch(folder / (as_word(payload) + ".xlsx")).name)], codes=(1,)),
    Surface("output that is there", lambda payload, folder: [
        "-p", "x", "-o", str(_touch(folder / (as_word(payload) + ".jsonl")).name)], codes=(1,)),
    Surface("output in no folder", option("-o", "{}/out.jsonl"), codes=(1,)),
    Surface("output of an unknown kind", option("-o", "out.{}"), codes=(2,)),
    Surface("output that goes on", lambda payload, folder: [
        "-p", "x", "-o", str(_begun(folder, payload)), "--resume"]),
    Surface("statistics in no folder", option("--stats", "{}/stats.json"), codes=(1,)),
    Surface("model", option("--model", "{}")),
    Surface("model, jsonl", option("--model", "{}", "--format", "jsonl")),
    Surface("field", lambda payload, folder: [
        rows_file(folder, {"prompt": "x"}), "--field", as_word(payload)], codes=(3,)),
    Surface("option that must be a number", option("--temperature", "{}"), codes=(2,), shows=False),
    Surface("option that must be one of some", option("--dtype", "{}"), codes=(2,)),
    Surface("option that is none", option("--{}"), codes=(2,), ends_at="="),
    Surface("batch size", option("--batch-size", "{}"), codes=(2,)),
    Surface("memory", option("--memory", "{}"), codes=(2,)),
    Surface("strict", lambda payload, folder: [named_file(payload, folder), "--strict"], codes=(1,)),
]  # fmt: skip


def _touch(path: Path) -> Path:
    path.touch()
    return path


def _begun(folder: Path, payload: str) -> str:
    name = as_word(payload) + ".jsonl"
    run([*FAKE, "-p", "x", "-o", name, "--keep-store"], cwd=folder)
    return name


def combinations(lab: Lab) -> list[tuple[Surface, str]]:
    every = [(surface, payload) for surface in SURFACES for payload in PAYLOADS]
    random.Random(lab.seed).shuffle(every)
    return every[: lab.some(CASES)]


def on_a_terminal(trial: Trial) -> Iterator[Tried]:
    surface, payload = trial.given
    command = [*FAKE, *surface.arguments(payload, trial.folder)]
    shown, code = screen(command, trial.folder)
    problem = raw_bytes(shown)
    problem = problem or (None if code in surface.codes else f"exit {code}: {shown[-1000:]}")
    problem = problem or ("traceback" if "Traceback" in shown else None)
    if surface.shows and not problem:
        problem = _not_shown(shown, payload.partition(surface.ends_at)[0] if surface.ends_at else payload)
    if "prompt" in surface.name and not problem:
        problem = _lossy(trial.folder, payload)
    yield Tried(f"{payload!r} as {surface.name}", problem)


def screen(command: list[str], folder: Path) -> tuple[str, int]:
    """Return what a dumb terminal gets, and the exit code."""
    environment = {**ENVIRONMENT, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": str(WIDTH)}
    child = pexpect.spawn(
        command[0], command[1:], cwd=folder, env=environment, timeout=PATIENCE_S, dimensions=(50, WIDTH), echo=False
    )
    output: bytes = child.read()
    child.close()
    code = child.exitstatus if child.exitstatus is not None else 128 + child.signalstatus
    return output.decode("utf-8", "surrogateescape").replace("\r\n", "\n"), code


def raw_bytes(shown: str) -> str | None:
    found = RAW.search(shown)
    return f"{found[0]!r} is raw in {shown[max(0, found.start() - 80) : found.end() + 80]!r}" if found else None


def _not_shown(shown: str, payload: str) -> str | None:
    """Return a problem if the payload is not shown, or was taken for markup; boxes and line breaks are ignored."""
    text, wanted = (re.sub(r"[\s│╭╮╰╯─/]", "", part) for part in (shown, payload))
    if MARK not in text:
        return f"it is not shown: {shown[-1000:]}"
    if IS_PLAIN.fullmatch(payload) and wanted not in text.replace("\\\\", "\\"):
        return f"it is shown as something else: {shown[-1000:]}"
    return None


def _lossy(folder: Path, payload: str) -> str | None:
    ended = run([*FAKE, "rows.jsonl", "--max-new-tokens", "200"], cwd=folder)
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    found = rows[1]["prompt"], rows[1]["text"][: len(MARK + payload)]
    return None if found == (MARK + payload,) * 2 else f"JSON Lines hold {found}"


# The commands that need the real model: all payloads at once.


def real_commands(lab: Lab) -> list[list[str]]:
    batchgen = [sys.executable, "-m", "batchgen"]
    model = ["--model", "bundled"]
    hostile = as_word(PAYLOADS[6])
    return [
        [*batchgen, "run", "rows.jsonl", *model, "--format", "table", "--max-new-tokens", "2"],
        [*batchgen, "inspect", "rows.jsonl", *model, "--limit", "100"],
        [*batchgen, "plan", "rows.jsonl", *model],
        [*batchgen, "plan", "bad.jsonl", *model],
        [*batchgen, "run", "-p", "x", "--model", f"./{hostile}"],
        [*batchgen, "run", "-p", "x", "--model", hostile],
        [*batchgen, "run", "-p", "x", "--model", "hostile"],
        [*batchgen, "run", "-p", "x", *model, "--device", hostile],
        [*batchgen, hostile],
        [*batchgen, f"--{hostile}"],
        [*batchgen, "verify", "rows.jsonl", "--model", hostile],
    ]


def real(trial: Trial) -> Iterator[Tried]:
    folder = trial.folder
    write_jsonl(folder / "rows.jsonl", [{"prompt": MARK + payload, "id": payload} for payload in PAYLOADS])
    write_jsonl(folder / "bad.jsonl", [{"prompt": payload * 2000, "id": payload} for payload in PAYLOADS])
    (folder / "hostile").mkdir()
    config = {"architectures": ["\x1b]0;t\x07MARK"], "model_type": "\x1b]0;t\x07MARK", "x": "\u202e"}
    (folder / "hostile" / "config.json").write_text(json.dumps(config))
    shown, _ = screen(trial.given, folder)
    problem = raw_bytes(shown) or ("traceback" if "Traceback" in shown else None)
    if not problem and MARK not in shown and not {"plan", "inspect"} & set(trial.given):
        problem = f"no payload is shown: {shown[-1000:]}"
    yield Tried(" ".join(map(ascii, trial.given[2:])), problem)


CHECKS = [
    Check("terminal-fake", "hostile text in prompt, output, path, model, id, error, option: nothing raw", combinations,
          on_a_terminal),
    Check("terminal-real", "the same in commands with the bundled model, 50 payloads each", real_commands, real),
]  # fmt: skip
