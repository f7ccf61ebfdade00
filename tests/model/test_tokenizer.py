"""Tokenizers that are read without transformers give transformers' ids, texts and names; others are left to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from batchgen.model.config_view import view_of
from batchgen.model.find import BUNDLED_FOLDER
from batchgen.model.tokenizer import LightTokenizer
from batchgen.model.tokenizer_files import QWEN2_SPLIT, read_light_tokenizer
from tests.support.chat_tokenizers import CORPUS, make_chat_tokenizer
from tests.support.configs import CONFIGS

TEXTS = [
    "My dog is", "", " ", "  two", "tail ", "a<|endoftext|>b", "<|im_start|>user\nhi<|im_end|>", "naïve café 東京 😀",
    "1234567 12.5", "don't I'LL we've", "\n\n  \t x\r\n", "e\u0301 ﬁ ß İ", "<unk> <s></s> [PAD] <think>",
    "\x00\x01\u200b",
    "def f(x):\n    return x", "👩‍👩‍👧", "▁under _line", "<0x0A><bos>",
]  # fmt: skip
PIECES = st.sampled_from([*TEXTS, "a", " ", "\n", "é", "<|", "|>", "0", "'s", "\u0301"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def put(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def gpt2(folder: Path) -> str:
    """GPT-2 as it is on the Hub: with hardly any config."""
    tokenizer = json.loads((BUNDLED_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    put(folder, "tokenizer.json", tokenizer)
    put(folder, "tokenizer_config.json", {"model_max_length": 1024})
    return "gpt2"


def bundled(folder: Path) -> str:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_FOLDER / name, folder)
    return "gpt2"


def trained(pipeline: list[Any], special: list[str], **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pipeline)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def splitting(pattern: str) -> list[Any]:
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), to_bytes]


def listed(tokenizer: Tokenizer) -> dict[str, Any]:
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    added = tokenizer.get_added_tokens_decoder()
    return {str(index): {flag: getattr(token, flag) for flag in flags} for index, token in added.items()}


def qwen(folder: Path, model_type: str = "qwen3", **config: Any) -> str:
    tokenizer = trained(splitting(QWEN2_SPLIT), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
    more = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "add_bos_token": False, "errors": "replace"}
    kind = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": listed(tokenizer)}
    put(folder, "tokenizer_config.json", names | more | kind | config)
    return model_type


def llama3(folder: Path, pad: str = "<|eot_id|>", **config: Any) -> str:
    """A tokenizer in which every text begins with a special token."""
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    tokenizer = trained(splitting(pattern), ["<|begin_of_text|>", "<|eot_id|>"], ignore_merges=True)
    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(pad_token=pad)
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = {"__type": "AddedToken", "content": "<|eot_id|>", "lstrip": False, "normalized": False}
    names = {"bos_token": bos[0], "eos_token": eos}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": listed(tokenizer)}
    put(folder, "tokenizer_config.json", names | kind | config)
    return "llama"


def saved(template: str, kind: str) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        make_chat_tokenizer(template, kind).save_pretrained(folder)
        return "llama"

    save.__name__ = f"{template}_{kind}"
    return save


TAKEN = [
    bundled, gpt2, qwen, llama3, saved("gemma", "unigram"), saved("llama2", "bytefallback"), saved("qwen3", "bytes"),
]  # fmt: skip


def read(folder: Path, model_type: str) -> LightTokenizer | None:
    config = view_of(CONFIGS[model_type])
    assert config
    return read_light_tokenizer(folder, config)


@pytest.fixture(scope="module", params=TAKEN, ids=lambda make: make.__name__)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LightTokenizer, PreTrainedTokenizerBase]:
    """Return a tokenizer as batchgen reads it, and as transformers does."""
    folder = tmp_path_factory.mktemp("tokenizer")
    model_type = request.param(folder)
    put(folder, "config.json", CONFIGS[model_type])
    light = read(folder, model_type)
    assert light is not None
    return light, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def ids_of(tokenizer: Any, texts: list[str], *, parse_special: bool) -> list[list[int]]:
    encoded = tokenizer(texts, padding=False, truncation=False, split_special_tokens=not parse_special)
    return list(encoded["input_ids"])


@settings(max_examples=60)
@given(texts=st.lists(st.lists(PIECES | TEXT, max_size=6).map("".join), min_size=1, max_size=3))
@pytest.mark.parametrize("parse_special", [False, True])
def test_texts_get_transformers_ids(both: tuple[Any, Any], texts: list[str], parse_special: bool) -> None:
    light, full = both
    assert ids_of(light, texts, parse_special=parse_special) == ids_of(full, texts, parse_special=parse_special)


@pytest.mark.parametrize("skip", [False, True])
def test_ids_get_transformers_texts_and_names(both: tuple[Any, Any], skip: bool) -> None:
    light, full = both
    for ids in ids_of(full, TEXTS, parse_special=True):
        text = light.decode(ids, skip_special_tokens=skip)
        assert text == full.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert light.convert_ids_to_tokens(ids) == full.convert_ids_to_tokens(ids)


FACTS = [
    "eos_token_id", "vocab_size", "special_tokens_map", "all_special_tokens", "all_special_ids",
    "added_tokens_decoder", "chat_template",
]  # fmt: skip


@pytest.mark.parametrize("fact", FACTS)
def test_facts_are_transformers(both: tuple[Any, Any], fact: str) -> None:
    light, full = both
    assert getattr(light, fact) == getattr(full, fact)
    assert light.eos_token_id is not None


def test_the_vocabulary_is_transformers(both: tuple[Any, Any]) -> None:
    light, full = both
    assert light.get_vocab() == full.get_vocab()
    assert light.convert_tokens_to_ids("a") == full.convert_tokens_to_ids("a")


@pytest.mark.parametrize("text", TEXTS)
def test_one_text_gets_transformers_ids_and_offsets(both: tuple[Any, Any], text: str) -> None:
    light, full = both
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    given, expected = light(text, **options), full(text, **options)
    assert given["input_ids"] == expected["input_ids"]
    assert given["offset_mapping"] == expected["offset_mapping"]


def llama3_with(**config: Any) -> Callable[[Path], str]:
    return lambda folder: llama3(folder, **config)


def without_tokenizer_json(folder: Path) -> str:
    (folder / "vocab.json").write_text("{}")
    return bundled_config_only(folder)


def bundled_config_only(folder: Path) -> str:
    shutil.copy(BUNDLED_FOLDER / "tokenizer_config.json", folder)
    return "gpt2"


def with_file(name: str, make: Callable[[Path], str]) -> Callable[[Path], str]:
    def made(folder: Path) -> str:
        put(folder, name, {"<extra>": 410})
        return make(folder)

    return made


def digits_apart(folder: Path) -> str:
    """GPT-2's class, which builds its own pre-tokenizer, over another one: as SmolLM2 on the Hub."""
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    trained(steps, ["<|endoftext|>"]).save(str(folder / "tokenizer.json"))
    put(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    return "llama"


LEFT = {
    "sentencepiece class": llama3_with(tokenizer_class="LlamaTokenizer"),
    "no class": llama3_with(tokenizer_class=None),
    "its own code": llama3_with(auto_map={"AutoTokenizer": ["a.B", None]}),
    "unknown setting": llama3_with(legacy=False),
    "asks for bos": llama3_with(add_bos_token=True),
    "asks for no bos": llama3_with(add_bos_token=False),
    "asks for a space": llama3_with(add_prefix_space=True),
    "special token that is not there": llama3_with(pad_token="<pad>"),
    "pads with a token that is not there": lambda folder: llama3(folder, pad="[PAD]"),
    "extra token that is not there": llama3_with(extra_special_tokens=["<image>"]),
    "other flags": llama3_with(eos_token={"__type": "AddedToken", "content": "<|eot_id|>", "lstrip": True}),
    "an object that is no token": llama3_with(eos_token={"content": "<|eot_id|>"}),
    "added token that is not there": llama3_with(added_tokens_decoder={"900": {"content": "<x>"}}),
    "qwen2 that lists too little": lambda folder: qwen(folder, added_tokens_decoder={}),
    "other splits": digits_apart,
    "added_tokens.json": with_file("added_tokens.json", gpt2),
    "several chat templates": llama3_with(chat_template=[{"name": "default", "template": "x"}]),
    "tekken.json": with_file("tekken.json", gpt2),
    "no tokenizer.json": without_tokenizer_json,
}


@pytest.mark.parametrize("reason", LEFT)
def test_a_tokenizer_that_is_not_certain_is_left_to_transformers(reason: str, tmp_path: Path) -> None:
    model_type = LEFT[reason](tmp_path)
    assert read(tmp_path, model_type) is None


def test_a_model_type_that_is_no_text_is_left_to_transformers() -> None:
    assert view_of({"model_type": ["gpt2"], "architectures": ["GPT2LMHeadModel"]}) is None
