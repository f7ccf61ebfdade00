"""Every command in README and docs runs; one that cannot run here is at least accepted by batchgen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import typer.main

from batchgen.cli import app
from batchgen.model.private import has_vnni
from tests.support.models import make_chat_model
from tests.support.pages import NOT_RUN, PAGES, commands_of, failure_of, why_not_run, words_of, write_files

SHOWN = [(page, line) for page, text in PAGES.items() for line in commands_of(text)]
FIRST = {line.split("  #")[0].strip(): page for page, line in reversed(SHOWN)}  # each command runs once
RUN = {
    page: [line for its, line in SHOWN if its == page == FIRST[line.split("  #")[0].strip()] and not why_not_run(line)]
    for page in PAGES
}
COMMIT = "0" * 40
PARSED = [line for _, line in SHOWN if line.startswith("batchgen ") and why_not_run(line) and "|HOST" not in line]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[None]:
    """A Hub cache in which tiny random models have the names of those that the pages use."""
    cache = tmp_path_factory.mktemp("hub")
    for name in ("openai-community--gpt2", "HuggingFaceTB--SmolLM2-135M-Instruct"):
        snapshot = cache / f"models--{name}" / "snapshots" / COMMIT
        if "gpt2" in name:
            shutil.copytree(folders["gpt2"], snapshot)
        else:
            make_chat_model("chatml", snapshot)
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)
    here, elsewhere = mock.patch("huggingface_hub.constants.HF_HUB_CACHE", str(cache)), {"HF_HUB_CACHE": str(cache)}
    with here, mock.patch.dict(os.environ, elsewhere):  # `rerun` starts a process
        yield


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("page", [page for page, lines in RUN.items() if lines])
def test_the_commands_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for line in RUN[page] if is_possible(line)]
    write_files(tmp_path, lines)
    assert [failure for line in lines for failure in [failure_of(line)] if failure] == []


def is_possible(line: str) -> bool:
    """Whether this machine has what the command needs."""
    programs = all(shutil.which(name) for name in ("sqlite3", "jq") if name in line)
    return programs and ("--quantize" not in line or has_vnni())


@pytest.mark.parametrize("line", PARSED)
def test_a_command_that_is_not_run_is_one_that_batchgen_takes(line: str) -> None:
    _, name, *words = words_of(line)
    root = typer.main.get_command(app)
    root.commands[name].make_context(name, words, resilient_parsing=False)  # type: ignore[attr-defined]


def test_commands_are_found() -> None:
    assert sum(map(len, RUN.values())) > 50
    assert {page for page, lines in RUN.items() if lines} >= {"README.md", "recipes.md", "start.md"}
    assert all(any(why_not_run(line) == reason for _, line in SHOWN) for reason in NOT_RUN.values())


@pytest.mark.parametrize(
    "line", ["batchgen run a.txt --tempratur 1", "batchgen run missing.txt", "batchgen help | false", "false"]
)
def test_a_command_that_fails_is_found(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert failure_of(line)
