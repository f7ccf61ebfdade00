"""Hostile tokenizers: inspected, tried in a child process, guarded; what they choke on fails a row."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from batchgen.errors import ModelError
from batchgen.formats.messages import conversation_of_prompt
from batchgen.model import guarded, open_checkpoint, text_trial, tokenizer_trial
from batchgen.model.chat import make_chat
from batchgen.model.find import BUNDLED_FOLDER
from batchgen.model.guarded import GuardedTokenizer, TokenizerFailure
from batchgen.model.padding import encode
from batchgen.model.passages import PassageEncoder
from batchgen.model.tokenizer import Tokenizer
from batchgen.model.tokenizer_files import QWEN2_SPLIT
from batchgen.model.tokenizer_parts import find_harm, growth_of, is_plain
from batchgen.model.tokenizer_trial import judge_tokenizer, try_in_child
from batchgen.records import Request
from tests.support.command import failure, invoke, records
from tests.support.rows import requests_of

PLAIN: dict[str, Any] = json.loads((BUNDLED_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")


class PanicException(BaseException):
    """Like the library's own exception."""


def replaces(times: int, pattern: Mapping[str, str], content: str, kind: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", kind: [{"type": "Replace", "pattern": pattern, "content": content}] * times}


def splits(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [nested(depth - 1)]} if depth else {"type": "NFC"}


HARMFUL = {
    "letters of letters": ("normalizer", replaces(9, {"String": "a"}, "a" * 10)),
    "letters of nothing": ("normalizer", replaces(14, {"Regex": ""}, "xxxx")),
    "letters of no string": ("normalizer", replaces(12, {"String": ""}, "xyz")),
    "doubled": ("normalizer", replaces(40, {"Regex": "[a-z ]"}, "be")),
    "by turns": ("normalizer", {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "b"}, "content": "cccc"},
        {"type": "Replace", "pattern": {"String": "c"}, "content": "dddd"},
        {"type": "Replace", "pattern": {"String": "d"}, "content": "eeee"}]}),
    "behind words": ("normalizer", replaces(20, {"Regex": "(?=a)"}, "a")),
    "nested": ("normalizer", nested(100)),
    "many": ("normalizer", replaces(100, {"String": "a"}, "b")),
    "a long text": ("normalizer", {"type": "Prepend", "prepend": "a" * 2**20}),
    "decoded": ("decoder", replaces(9, {"String": "a"}, "a" * 10, "decoders")),
    "decoded by a search": ("decoder", replaces(1, {"Regex": "(a|aa)+$b"}, "", "decoders")),
    "around a text": ("post_processor", {"type": "TemplateProcessing", "single": [], "pair": [],
        "special_tokens": {"x": {"id": "x", "ids": [1] * 1000, "tokens": ["x"] * 1000}}}),
    "a long token": ("model", {"type": "BPE", "vocab": {"a" * 10**6: 0}, "merges": []}),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_what_makes_much_of_little_is_harmful(name: str) -> None:
    part, value = HARMFUL[name]
    assert find_harm({**PLAIN, part: value})


def test_what_well_known_tokenizers_do_is_not() -> None:
    sentencepiece = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        {"type": "Replace", "pattern": {"String": "\u201c"}, "content": "``"}]}  # fmt: skip
    assert find_harm({**PLAIN, "normalizer": sentencepiece}) is None
    assert is_plain({**PLAIN, "normalizer": sentencepiece})
    assert growth_of(sentencepiece["normalizers"]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pattern", [QWEN2_SPLIT, LLAMA3_SPLIT, r"\p{N}{1,3}", r"\s+", "[0-9][0-9][0-9]", "[\u4e00-\u9fa5]+"]
)
def test_patterns_that_never_look_twice_are_plain(pattern: str) -> None:
    assert is_plain({**PLAIN, "pre_tokenizer": splits(pattern)})


@pytest.mark.parametrize(
    "pattern", ["(a|aa)+$b", r"((a+)\2?)+$b", "a*a*b", r"(.)\1", "(?=a+)+", "[a&&[b]]+", "x" * 999]
)
def test_patterns_that_may_are_not(pattern: str) -> None:
    assert not is_plain({**PLAIN, "pre_tokenizer": splits(pattern)})


def test_models_that_look_far_ahead_from_each_character_are_not_plain() -> None:
    words = {"type": "WordPiece", "vocab": {"a": 0, "##a": 1}, "max_input_chars_per_word": 100}
    pieces = [[f"{'a' * length}", -1.0] for length in (1, 2, 100)]
    assert is_plain({**PLAIN, "model": words})
    assert not is_plain({**PLAIN, "model": {**words, "max_input_chars_per_word": 10_000}})
    assert is_plain({**PLAIN, "model": {"type": "Unigram", "vocab": pieces}})
    assert not is_plain({**PLAIN, "model": {"type": "Unigram", "vocab": [*pieces, ["a" * 1000, -1.0]]}})


@pytest.fixture
def spoiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Copy the bundled model with other parts in its tokenizer."""
    monkeypatch.setattr(tokenizer_trial, "CHILD_S", 1000.0)  # on a busy machine its limit of processor time is enough

    def spoil(**parts: object) -> Path:
        folder = Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "model"))
        (folder / "tokenizer.json").write_text(json.dumps({**PLAIN, **parts}), encoding="utf-8")
        return folder

    return spoil


@pytest.mark.parametrize("command", ["run", "plan", "inspect", "verify"])
def test_every_command_refuses_a_harmful_one_before_it_is_loaded(
    spoiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    folder = spoiled(normalizer=HARMFUL["doubled"][1])
    monkeypatch.setattr("batchgen.model.checkpoint.read_light_tokenizer", lambda *_: pytest.fail("it was loaded"))
    line = failure(invoke(command, "-p", "My dog is", "--model", folder), 1)
    assert f"{folder}/tokenizer.json is refused: its normalizer can make about 10^12 characters of one" in line


def test_what_is_unusual_is_tried_in_a_child_and_a_panic_there_is_one_line(
    spoiled: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = spoiled(pre_tokenizer=splits("(a|aa)+$b"))
    with pytest.raises(ModelError, match=r"is refused: the tokenizer library fails on it: PanicException: "):
        judge_tokenizer(folder)
    assert capfd.readouterr().err == ""


def test_a_child_that_dies_or_takes_too_long_is_a_refusal(
    spoiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spoiled() / "tokenizer.json"
    monkeypatch.setattr(tokenizer_trial.sys, "executable", "/bin/false")
    assert "died (exit code 1" in (try_in_child(path) or "")
    monkeypatch.undo()
    monkeypatch.setattr(tokenizer_trial, "CHILD_S", 0.0)
    assert "takes more than" in (try_in_child(path) or "")


def test_a_verdict_is_found_once(spoiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = spoiled(pre_tokenizer=splits(r"a*[^a]*|\s"), version="kept")
    asked: list[Path] = []
    monkeypatch.setattr(tokenizer_trial, "try_in_child", asked.append)
    assert [judge_tokenizer(folder) for _ in range(3)] == ["tried"] * 3
    assert asked == [folder / "tokenizer.json"]


def test_what_is_unusual_and_right_runs(spoiled: Callable[..., Path]) -> None:
    folder = spoiled(pre_tokenizer=splits(r"a*[^a]*|\s"))
    result = invoke("run", "-p", "My dog is", "--model", folder, "--max-new-tokens", 3, "--format", "jsonl", "-q")
    assert result.exit_code == 0, result.stderr
    assert [row["num_output_tokens"] for row in records(result)] == [3]


def test_plain_tokenizers_need_no_child(spoiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_trial, "try_in_child", lambda path: pytest.fail("a child"))
    monkeypatch.setattr(text_trial.TextTrial, "_start", lambda trial: pytest.fail("a child"))
    assert judge_tokenizer(spoiled(version="plain")) == "plain"
    assert encode(requests_of(["My dog is"]), open_checkpoint("bundled").codec)[0].input_ids


SEARCHES = r"(?:x|y)*(?:x|y)*[0-9]{2}|[\s\S]"  # through all splits of a run of x and y, from each of its positions
ENDLESS = "xy" * 1500 + "1 11"


@pytest.fixture
def searching(spoiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose tokenizer passes its trial, and searches without end on one text."""
    monkeypatch.setattr(text_trial, "TEXT_CPU_S", 0.3)
    folder = spoiled(pre_tokenizer=splits(SEARCHES))
    config = folder / "tokenizer_config.json"  # GPT-2's own class would build another pre_tokenizer
    config.write_text(json.dumps({**json.loads(config.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


ROWS = ["My dog is", ENDLESS, "The sun"]


def test_a_text_that_a_tokenizer_searches_without_end_fails_alone(searching: Path) -> None:
    assert judge_tokenizer(searching) == "tried"
    rows = encode(requests_of(ROWS), open_checkpoint(str(searching)).codec)
    errors = [row.error for row in rows]
    assert errors[0] is errors[2] is None
    assert "fails on this text: it takes more than 0 s of CPU time for these 3,004 characters" in str(errors[1])
    assert all(rows[i].input_ids for i in (0, 2))


def test_so_it_does_in_scores_and_conversations(searching: Path) -> None:
    checkpoint = open_checkpoint(str(searching))
    chat = make_chat({"default": "{{ messages[0].content }}"}, lambda: checkpoint.codec)  # type: ignore[arg-type,return-value]
    plain = [conversation_of_prompt(text, {}) for text in (*ROWS, f"<|endoftext|> {ENDLESS}")]
    errors = [row.error for row in chat.encode([one for one in plain if one])]
    assert [bool(error) for error in errors] == [False, True, False, True]
    rows = [Request(i, str(i), text, scored="text") for i, text in enumerate(ROWS)]
    scored = PassageEncoder(checkpoint, chat).encode(rows)
    assert [bool(row.error) for row in scored] == [False, True, False]


def test_a_text_that_takes_too_much_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    small = "from batchgen.model import text_trial; text_trial.MOST_BYTES = 2**28; text_trial.main()"
    monkeypatch.setattr(text_trial, "CHILD", small)
    backend = tokenizers.Tokenizer.from_str(json.dumps({**PLAIN, "normalizer": {"type": "NFKD"}}))
    trial = text_trial.TextTrial(backend.to_str())
    assert trial.problem_of("My dog is") is None
    assert trial.problem_of("\ufdfa" * 200_000) == "it takes more than 2 GiB for these 200,000 characters"
    assert trial.problem_of("My dog is") is None


def test_very_long_texts_are_tried_with_plain_tokenizers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[str]()
    monkeypatch.setattr(text_trial.TextTrial, "problem_of", lambda trial, text, **_: tried.append(text) or "no")
    monkeypatch.setattr(guarded, "LONG_TEXT", 20)
    rows = encode(requests_of(["short", "a long text with many words"]), open_checkpoint("bundled").codec)
    assert tried == ["a long text with many words"] * 2  # with the others, and alone
    assert [row.error for row in rows] == [None, "the tokenizer fails on this text: no"]


def test_few_characters_are_encoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "AT_ONCE", 10)
    seen = list[list[str]]()
    texts = ["four", "five5", "sixsix", "a text of many characters", "x"]
    assert guarded.each_or_why(texts, lambda some: seen.append(some) or [[len(text)] for text in some]) == [
        [len(text)] for text in texts
    ]
    assert seen == [["four", "five5"], ["sixsix"], ["a text of many characters"], ["x"]]


class Choking:
    """A tokenizer that panics at a word."""

    def __init__(self, tokenizer: Tokenizer, word: str) -> None:
        self.tokenizer, self.word = tokenizer, word

    def __call__(self, text: str | list[str], **options: Any) -> Mapping[str, Any]:
        if self.word in (text if isinstance(text, str) else " ".join(text)):
            raise PanicException("retry limit")
        return self.tokenizer(text, **options)


def test_a_text_that_a_tokenizer_chokes_on_fails_alone() -> None:
    tokenizer: Any = GuardedTokenizer(Choking(open_checkpoint("bundled").codec, "boom"), "tiny")  # type: ignore[arg-type]
    rows = encode(requests_of(["My dog is", "a boom here", "The sun"]), tokenizer)
    assert [row.error and row.error.split(": ")[1] for row in rows] == [None, "PanicException", None]
    assert [bool(row.input_ids) for row in rows] == [True, False, True]


def test_a_tokenizer_that_takes_too_long_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "PATIENCE_S", 0.0)
    never = threading.Event()
    tokenizer: Any = lambda text: never.wait()  # noqa: E731
    try:
        with pytest.raises(ModelError, match=r"^the tokenizer of tiny takes more than 0 s for 9 characters"):
            GuardedTokenizer(tokenizer, "tiny")("My dog is")
    finally:
        never.set()


def test_what_cannot_be_decoded_fails_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any) -> str:
        raise TokenizerFailure("the tokenizer fails on this text: PanicException: index out of bounds")

    monkeypatch.setattr("batchgen.model.replies.decode_output", decode)
    result = invoke("run", "-p", "My dog is", "--model", "bundled", "--max-new-tokens", 2, "--format", "jsonl")
    assert result.exit_code == 3
    assert [row["finish_reason"] for row in records(result)] == ["error"]
