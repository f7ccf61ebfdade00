"""`doctor --model`: how a model handles conversations."""

from __future__ import annotations

import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from batchgen.doctor.conversation import examine_chat as examine
from batchgen.doctor.facts import ChatFacts
from batchgen.errors import ModelError
from batchgen.model import open_checkpoint
from batchgen.model.find import BUNDLED_FOLDER
from batchgen.render.doctor import print_chat

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The bundled model's files without its weights, with a chat template."""
    for path in BUNDLED_FOLDER.glob("*.json"):
        shutil.copy(path, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


def examine_chat(name: str) -> ChatFacts:
    return examine(open_checkpoint(name, weights=False))


def drawn(facts: ChatFacts) -> str:
    console = Console(file=StringIO(), width=120)
    print_chat(console, facts)
    return console.file.getvalue()


def test_a_models_template_is_described(folder: Path) -> None:
    facts = examine_chat(str(folder))
    assert (facts.templates, facts.opens, facts.closes) == (("default",), "[user]", "<|endoftext|>")
    assert (facts.generation_prompt, facts.closing_is_eos) == ("[assistant]<think>", True)
    assert facts.reasoning_marks == ("<think>", "</think>")
    assert facts.bos == "the template adds no BOS; plain prompts get no BOS"
    assert "opens         [user]" in drawn(facts)


def test_a_model_without_a_template_says_how_to_give_one() -> None:
    facts = examine_chat("bundled")
    assert facts.templates == ()
    assert "none: --chat needs --chat-template FILE" in drawn(facts)


def test_a_broken_template_is_a_finding(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")
    assert "broken: the chat template, line 1" in drawn(examine_chat(str(folder)))


def test_a_template_that_refuses_a_plain_conversation_is_a_finding(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    assert "it rejects a question with an answer" in drawn(examine_chat(str(folder)))


def test_a_model_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ModelError):
        examine_chat("./nowhere")
