from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from batchgen import generate
from batchgen.model.added_ids import AddedIds, added_ids
from batchgen.model.chat import Chat
from batchgen.model.find import BUNDLED_FOLDER
from batchgen.model.padding import encode
from batchgen.records import Sequence, TooLong
from tests.support.command import invoke, records
from tests.support.rows import requests_of

UNK, BOS, LANG, EOS = range(4)
WORDS = ["one", "two", "three", "four", "five"]


def tokenizer_that_adds(template: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are tokens 4 to 8; `template` says what surrounds a text, `$A`."""
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "[en]", "</s>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<s>", "[en]", "</s>"]
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    ids = [(token, vocab[token]) for token in special]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


AROUND = "<s> [en] $A </s>"


def encoded(
    prompt: str, template: str = AROUND, *, parse_special: bool = False, room: int | None = None, too_long: TooLong
) -> Sequence:
    n_positions = None if room is None else room + 1
    requests = requests_of([prompt], max_new_tokens=1)
    options = {"n_positions": n_positions, "too_long": too_long, "parse_special": parse_special}
    [sequence] = encode(requests, tokenizer_that_adds(template), **options)  # type: ignore[arg-type]
    return sequence


def ids_of(prompt: str, template: str = AROUND, *, parse_special: bool = False, room: int | None = None) -> list[int]:
    return encoded(prompt, template, parse_special=parse_special, room=room, too_long="truncate").input_ids


@pytest.mark.parametrize(
    ("template", "added"),
    [
        ("$A", AddedIds()),
        ("<s> $A", AddedIds((BOS,))),
        ("$A </s>", AddedIds((), (EOS,))),
        ("<s> [en] $A [en] </s>", AddedIds((BOS, LANG), (LANG, EOS))),
    ],
)
def test_what_a_tokenizer_adds_is_found(template: str, added: AddedIds) -> None:
    assert added_ids(tokenizer_that_adds(template)) == added


def test_what_stands_behind_a_text_is_left_out_and_what_stands_in_front_is_kept() -> None:
    assert ids_of("one two") == [BOS, LANG, 4, 5]


def test_an_end_that_the_prompt_has_itself_stays() -> None:
    assert ids_of("one</s>", parse_special=True) == [BOS, LANG, 4, EOS]


def test_a_cut_prompt_keeps_what_stands_in_front() -> None:
    row = encoded("one two three four five", room=4, too_long="truncate")
    assert row.input_ids == [BOS, LANG, 7, 8]
    assert row.num_truncated_tokens == 3


def test_a_prompt_that_has_room_for_nothing_but_marks_fails() -> None:
    row = encoded("one two three", room=2, too_long="truncate")
    assert row.error == "1 new tokens leave no room for a prompt: the model has 3 positions"


def test_a_cut_prompt_that_fits_without_what_stood_behind_it_is_whole() -> None:
    assert ids_of("one two", room=4) == [BOS, LANG, 4, 5]


@pytest.mark.parametrize("prompt", ["one two", "<s>[en]one two", "<s> [en] one two"])
def test_a_mark_in_front_that_the_prompt_has_itself_is_there_once(prompt: str) -> None:
    assert ids_of(prompt, parse_special=True) == [BOS, LANG, 4, 5]


def test_a_mark_in_front_that_is_cut_behind_is_there_once() -> None:
    assert ids_of("<s>[en]one two three", parse_special=True, room=3) == [BOS, LANG, 6]


def test_the_text_of_a_mark_stays_text_without_parse_special() -> None:
    assert ids_of("<s>one", "<s> $A").count(BOS) == 1
    assert UNK in ids_of("<s>one", "<s> $A")


def test_what_is_left_out_is_said_once_in_a_run() -> None:
    said: list[str] = []
    tokenizer = tokenizer_that_adds(AROUND)
    chat = Chat({}, lambda: tokenizer, say=said.append)
    for _ in range(3):
        encode(requests_of(["one", "two"]), tokenizer, chat=chat)
    [line] = said
    assert "adds </s> after every text" in line


@pytest.fixture(scope="module")
def with_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, with a tokenizer that adds its end token after every text."""
    folder = tmp_path_factory.mktemp("model") / "with-end"
    shutil.copytree(BUNDLED_FOLDER, folder)
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    end = "<|endoftext|>"
    backend = Tokenizer.from_file(str(file))
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, backend.token_to_id(end))]
    )
    state["post_processor"] = json.loads(backend.to_str())["post_processor"]
    file.write_text(json.dumps(state))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


LINE = "adds <|endoftext|> after every text"
PROMPTS = ("-p", "My dog is", "-p", "It will rain in the")


def test_run_continues_the_text_and_says_once_what_it_left_out(with_end: Path) -> None:
    given = ("run", *PROMPTS, "--max-new-tokens", 5, "--ids")
    ours, plain = (invoke(*given, "--model", model) for model in (with_end, "bundled"))
    assert [row["output_ids"] for row in records(ours)] == [row["output_ids"] for row in records(plain)]
    assert ours.stderr.count(LINE) == 1
    assert LINE not in plain.stderr


@pytest.mark.parametrize("command", ["inspect", "plan", "verify"])
def test_what_looks_at_prompts_leaves_it_out_as_a_run_does(with_end: Path, command: str) -> None:
    given = (command, *PROMPTS, "--json", *(("--max-new-tokens", 1) if command == "verify" else ()))
    ours, plain = (invoke(*given, "--model", model) for model in (with_end, "bundled"))
    assert ours.stderr.count(LINE) == 1
    found, expected = json.loads(ours.stdout), json.loads(plain.stdout)
    if command == "inspect":
        assert [row["input_ids"] for row in found["rows"]] == [row["input_ids"] for row in expected["rows"]]
    elif command == "plan":
        assert found["planned"] == expected["planned"]
    else:
        assert ours.exit_code == 0


def test_python_warns_of_what_it_leaves_out(with_end: Path) -> None:
    with pytest.warns(UserWarning, match="after every text"):
        [result] = generate(["My dog is"], str(with_end), max_new_tokens=5)
    assert list(result.input_ids) == list(generate(["My dog is"], "bundled", max_new_tokens=5)[0].input_ids)


def test_conversations_have_no_marks_to_leave_out(with_end: Path, tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    given = ("inspect", "-p", "My dog is", "--chat-template", template, "--chat", "--json", "--model", with_end)
    looked = invoke(*given)
    assert looked.exit_code == 0
    assert LINE not in looked.stderr
    assert json.loads(looked.stdout)["rows"][0]["input_ids"] == [3666, 3290, 318]
