"""What others get and run: the manual page, the image, the workflows, the hooks. They only name what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import man_page
import pytest
import yaml

from batchgen.cli.lazy import LazyCommand

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
YAML = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]


def test_the_manual_page_says_what_the_commands_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    committed = (ROOT / "share/man/man1/batchgen.1").read_text(encoding="utf-8")
    assert man_page.man_page() == committed, "make docs writes it anew"


def test_a_command_alone_has_the_help_options_that_it_has_in_the_program() -> None:
    """Commands are made once in a process, and keep the help option of their first context."""
    alone = LazyCommand("plan").make_context("plan", [], resilient_parsing=True)
    assert alone.help_option_names == ["-h", "--help"]


@pytest.mark.parametrize("path", YAML, ids=[path.name for path in YAML])
def test_it_is_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def workflow() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"])


def test_what_the_workflow_makes_is_in_the_makefile() -> None:
    commands = "\n".join(step.get("run", "") for job in workflow().values() for step in job["steps"])
    targets = re.findall(r"\bmake ([a-z-]+)", commands)
    assert {"lint", "types", "test", "test-lowest", "test-ray", "test-browser", "dist-check"} <= set(targets)
    assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in targets)


def test_every_python_that_is_promised_is_tested() -> None:
    promised = {line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)}
    assert set(workflow()["test"]["strategy"]["matrix"]["python"]) == promised


def test_the_image_copies_what_is_there_and_runs_the_command_as_a_user_without_rights() -> None:
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    ]
    assert "batchgen" in copied
    assert all((ROOT / word).exists() for word in copied)
    assert re.search(r"^USER 1000$", DOCKERFILE, re.MULTILINE)
    assert 'ENTRYPOINT ["batchgen"]' in DOCKERFILE


def test_the_image_installs_extras_that_exist_and_its_stages_are_defined() -> None:
    extras = {name for group in re.findall(r"/src\[([\w,]+)\]", DOCKERFILE) for name in group.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])
    stages = re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {"cpu", "cuda"} <= set(stages)
    assert stages[-1] == "cpu"
    assert set(re.findall(r"--from=(\S+)", DOCKERFILE)) <= set(stages)


def test_the_hooks_run_tools_that_make_run_installs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    installed = [line.partition(">")[0] for line in PROJECT["optional-dependencies"]["dev"]]
    assert all(hook["entry"].split()[0].removeprefix(".venv/bin/") in installed for hook in hooks)
