"""The shell commands of README and docs, the files that they read, and what happens when they run in this process."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from refresh_docs import shell_environment

from tests.support.in_process import run

ROOT = Path(__file__).parent.parent.parent
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "tools" / "website" / "start.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]
}
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```|^((?: {4}[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
PROGRAMS = "batchgen|python|sqlite3|docker|ray|srun|kubectl|pip|make|source|git"
LINE = re.compile(rf"^(?: {{4}}|)((?:{PROGRAMS}) [^\n]+)$", re.MULTILINE)
END = {"|", ">", "<", ">>", "&&", "&", "2>", ";"}

# Kinds of commands that tests do not run, and why; batchgen's own are still parsed.
NOT_RUN = {
    r"--ray\b": "starts a cluster: tests/runs/test_ray.py does",
    r"\bcuda:": "needs two GPUs",
    r"^batchgen bench": "measures for minutes: tests/bench does so for seconds",
    r"^python -m batchgen\.lm_eval": "needs lm-eval and its data sets: tests/test_lm_eval.py has them",
    r"^docker": "needs Docker",
    r"^(ray|srun|kubectl)": "needs a cluster",
    r"^(pip|make|git|source)": "installs or builds",
}

ROWS = "My dog is\nIt will rain in the\n"
SCORED = (
    '{"prompt": "My dog is", "choices": [" nice", " the"], "answer": 0, "subject": "pets"}\n'
    '{"prompt": "It will", "choices": [" rain", " dog"], "answer": 1, "subject": "sky"}\n'
)
FILES = {
    "prompts.txt": ROWS,
    "questions.txt": ROWS,
    "reviews.txt": ROWS,
    "book.txt": ROWS,
    "big.jsonl": '{"prompt": "My dog is"}\n',
    "prompts.jsonl": '{"prompt": "My dog is"}\n',
    "questions.jsonl": SCORED,
    "essays.jsonl": '{"text": "My dog is a very nice dog."}\n',
    "chats.jsonl": '{"messages": [{"role": "user", "content": "Hello"}]}\n',
    "quiz.csv": 'question,choices,answer,subject\n"Is a dog an animal?","[""yes"", ""no""]",0,pets\n',
    "questions.csv": "question,topic\nWhat is a dog?,pets\n",
    "reviews.csv": "review\nIt was nice.\n",
    "prompt.jinja": "Q: {{ question }} A:\n",
    "review.json": '{"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"], '
    '"additionalProperties": false}',
}
# Outputs that a page assumes to exist: how many tokens each row has, and the other options.
OUTPUTS = {
    "out.jsonl": "4 --keep-store",
    "out.parquet": "4",
    "answers.jsonl": "4",
    "results.db": "4",
    "a.jsonl": "4",
    "b.jsonl": "6",
    "b.csv": "6",
    "float32.jsonl": "4",
    "bfloat16.csv": "4 --dtype bfloat16",
}


def commands_of(text: str) -> list[str]:
    """Return the commands in the blocks of a page that do not show output.

    >>> commands_of("a\\n\\n    batchgen run - -o out.jsonl     # a comment\\n\\n    model = 'gpt2'\\n")
    ['batchgen run - -o out.jsonl     # a comment']
    """
    blocks = [found[1] or found[2] for found in BLOCK.finditer(text)]
    return [line for block in blocks for line in LINE.findall(block)]


def words_of(line: str) -> list[str]:
    """Return the words of a command, up to a pipe or a redirection, without the comment."""
    lexer = shlex.shlex(line.replace("$'", "'"), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    return words[: next((n for n, word in enumerate(words) if word in END), len(words))]


def why_not_run(line: str) -> str | None:
    """Return why the tests do not run a command, if they do not."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


def write_files(folder: Path, lines: list[str]) -> None:
    """Write the files that the commands of a page read."""
    text = "\n".join(lines)
    shutil.copytree(ROOT / "prompts", folder / "prompts")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    if "questions.parquet" in text:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"question": ["What is a dog?"]}), folder / "questions.parquet")
    for name, options in OUTPUTS.items():
        if name in text:
            failure = failure_of(f"batchgen run prompts.txt -o {name} --max-new-tokens {options}")
            assert failure is None, failure


def failure_of(line: str) -> str | None:
    """Return what went wrong when the command ran in the working directory, or None."""
    if line.startswith("batchgen "):
        return _failure_in_process(line)
    done = subprocess.run(["bash", "-c", line], env=shell_environment(), capture_output=True, text=True, timeout=120)
    return f"{line}: {done.stderr}" if done.returncode else None


def _failure_in_process(line: str) -> str | None:
    _, *words = words_of(line)
    if "-o" in words and not {"--resume", "--overwrite"} & set(words):
        _remove_output(Path(words[words.index("-o") + 1]))
    with (
        Path(os.devnull).open(encoding="utf-8") as nothing,
        tempfile.TemporaryFile("w+", encoding="utf-8") as output,
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
    ):
        exit_code = run(words, nothing, output, errors, COLUMNS="80")
        output.seek(0)
        errors.seek(0)
        printed, said = output.read(), errors.read()
    if exit_code not in ((0, 4) if words[0] == "diff" else (0,)):
        return f"{line}: exit code {exit_code}: {said}{printed}"
    return _failure_behind(line, printed)


def _failure_behind(line: str, printed: str) -> str | None:
    """Return what went wrong after the pipe, if the command has one."""
    _, pipe, rest = line.partition(" | ")
    if not pipe:
        return None
    done = subprocess.run(["bash", "-c", rest], input=printed, capture_output=True, text=True)
    return f"{line}: {done.stderr}" if done.returncode or not done.stdout else None


def _remove_output(path: Path) -> None:
    """Remove a command's output, so that a page may use a name twice."""
    for each in (path, Path(f"{path}.run.db"), path.with_name(f".{path.name}.run")):
        each.unlink(missing_ok=True)
