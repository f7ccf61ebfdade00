"""Read a model's tokenizer with the `tokenizers` library alone, if the ids are certain to equal transformers'.

transformers rebuilds some tokenizers from a folder's vocabulary, adds tokens that its config names, and changes which
tokens surround a text. A folder is read here only if none of this can change an id: its class is one of a few,
tokenizer.json matches what that class would build, and it contains every special token. Anything else is left to
transformers, which is slower to import.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.model.tokenizer import LightTokenizer

if TYPE_CHECKING:
    import tokenizers

    from batchgen.model.config_view import ConfigView

GENERIC = {"PreTrainedTokenizer", "TokenizersBackend"}  # use tokenizer.json as it is; without "Fast"
GPT2, QWEN2 = "GPT2Tokenizer", "Qwen2Tokenizer"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")  # in order
END_OF_TEXT = "<|endoftext|>"
DEFAULTS = {
    GPT2: dict.fromkeys(("unk_token", "bos_token", "eos_token"), END_OF_TEXT),
    QWEN2: dict.fromkeys(("unk_token", "eos_token", "pad_token"), END_OF_TEXT),
}
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Keys of tokenizer_config.json that cannot change an id, or are checked below.
KNOWN_KEYS = {
    "added_tokens_decoder", "additional_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space",
    "backend", "chat_template", "clean_up_tokenization_spaces", "errors", "extra_special_tokens", "is_local",
    "local_files_only", "max_length", "model_input_names", "model_max_length", "name_or_path", "padding_side",
    "processor_class", "special_tokens_map_file", "split_special_tokens", "tokenizer_class", "truncation_side",
}  # fmt: skip
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_light_tokenizer(folder: Path, config: ConfigView) -> LightTokenizer | None:
    """A folder's tokenizer; None if only transformers is certain to give the right ids."""
    import tokenizers

    try:
        settings = _settings(folder)
        if settings is None:
            return None
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - the library raises nothing more specific; transformers will report it
        return None
    kind = _class_of(settings, config)
    if kind is None or not _is_as_built(backend, kind):
        return None
    names = _names(settings, backend, kind)
    if not _adds_nothing(backend, kind, settings, names):
        return None
    backend.no_padding()
    backend.no_truncation()
    in_order = dict.fromkeys(NAMES) | names
    named = {name: _content(token) for name, token in in_order.items() if token is not None}
    return LightTokenizer(backend, named, tuple(map(_content, _more_special(settings))), settings.get("chat_template"))


def _settings(folder: Path) -> dict[str, Any] | None:
    """tokenizer_config.json, merged with special_tokens_map.json if transformers reads it; None if it is unusual."""
    settings = _read(folder / "tokenizer_config.json")
    if any(isinstance(value, dict) and "__type" not in value for key, value in settings.items() if _names_token(key)):
        return None
    if "added_tokens_decoder" not in settings:
        if (folder / "added_tokens.json").exists():
            return None
        settings |= _read(folder / "special_tokens_map.json")
    if (template := folder / "chat_template.jinja").exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    is_known = all(key in KNOWN_KEYS or _names_token(key) for key in settings)
    has_odd_files = any((folder / name).exists() for name in ("tekken.json", "additional_chat_templates"))
    is_odd = settings.get("add_prefix_space") or not isinstance(settings.get("chat_template") or "", str)
    return settings if is_known and not has_odd_files and not is_odd else None


def _names(settings: Mapping[str, Any], backend: tokenizers.Tokenizer, kind: str) -> dict[str, Any]:
    """Special tokens by name: from the config, otherwise tokenizer.json's padding, otherwise the class's defaults."""
    padding = {"pad_token": backend.padding["pad_token"]} if backend.padding and kind in GENERIC else {}
    return DEFAULTS.get(kind, {}) | padding | {key: value for key, value in settings.items() if _names_token(key)}


def _names_token(key: str) -> bool:
    return key.endswith("_token") and not key.startswith("add_")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _class_of(settings: Mapping[str, Any], config: ConfigView) -> str | None:
    """The class that transformers uses, or one that gives the same tokenizer; None for any other."""
    named = settings.get("tokenizer_class") or config.tokenizer_class
    name = named.removesuffix("Fast") if isinstance(named, str) else named
    if config.model_type == "gpt2" and (name is None or name in GENERIC | {GPT2}):
        return GPT2
    if config.model_type in ("qwen2", "qwen3") and name in GENERIC | {QWEN2}:
        return QWEN2
    return name if name in GENERIC | {GPT2, QWEN2} else None


def _is_as_built(backend: tokenizers.Tokenizer, kind: str) -> bool:
    """Whether tokenizer.json matches what the class would build from the vocabulary alone."""
    if kind in GENERIC:
        return True
    model = backend.model
    if type(model).__name__ != "BPE" or model.dropout is not None or model.unk_token is not None:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if model.fuse_unk or model.byte_fallback or model.ignore_merges:
        return False
    steps = (_state(backend.normalizer), _state(backend.pre_tokenizer), _state(backend.decoder).get("type"))
    if kind == GPT2:
        return steps == ({}, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "ByteLevel")
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return steps == ({"type": "NFC"}, {"type": "Sequence", "pretokenizers": [split, to_bytes]}, "ByteLevel")


def _state(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as in tokenizer.json, without settings that cannot change an id."""
    if part is None:
        return {}
    state: dict[str, Any] = json.loads(part.__getstate__())
    for step in (state, *state.get("pretokenizers", ())):
        step.pop("trim_offsets", None)
    return state


def _adds_nothing(
    backend: tokenizers.Tokenizer, kind: str, settings: Mapping[str, Any], names: Mapping[str, Any]
) -> bool:
    """Whether tokenizer.json already has all tokens that the configs name, with the same flags."""
    added = backend.get_added_tokens_decoder()
    by_content = {token.content: token for token in added.values()}
    listed = settings.get("added_tokens_decoder")
    if listed is not None and not _is_listed(listed, added, whole=kind not in GENERIC):
        return False
    for name in (*(name for name in names.values() if name is not None), *_more_special(settings)):
        token = by_content.get(_content(name))
        if token is None or not token.special or not _agrees(name, token):
            return False
    if kind not in GENERIC and not (_stand_in_order(backend) and all(map(_is_bare, by_content.values()))):
        return False
    adds = [settings.get("add_bos_token"), settings.get("add_eos_token")]
    puts_around = backend.num_special_tokens_to_add(False)
    return adds == [None, None] or not (any(adds) or puts_around)


def _more_special(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Special tokens that the config lists without a name: strings, or objects with a `content`."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key) or ()
        yield from more.values() if isinstance(more, dict) else more


def _is_listed(listed: Mapping[str, Any], added: Mapping[int, Any], *, whole: bool) -> bool:
    """Whether added_tokens_decoder lists only added tokens of tokenizer.json, and all of them if `whole`."""
    if whole and {int(index) for index in listed} != set(added):
        return False
    return all(
        int(index) in added and added[int(index)].content == _content(token) and _agrees(token, added[int(index)])
        for index, token in listed.items()
    )


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _agrees(given: Any, token: tokenizers.AddedToken) -> bool:
    """Whether the flags that a config sets for a token, if any, match the token's own."""
    flags = given if isinstance(given, dict) else {}
    return all(flags.get(flag, getattr(token, flag)) == getattr(token, flag) for flag in FLAGS)


def _is_bare(token: tokenizers.AddedToken) -> bool:
    """Whether a token has the flags that it would get if it were added again by its text alone."""
    return not (token.special and (token.single_word or token.lstrip or token.rstrip or token.normalized))


def _stand_in_order(backend: tokenizers.Tokenizer) -> bool:
    """Whether added tokens have the ids that adding them again would give: their vocabulary id or the next free one."""
    new = []
    for index, token in sorted(backend.get_added_tokens_decoder().items()):
        known = backend.model.token_to_id(token.content)
        if known is None:
            new.append(index)
        elif known != index:
            return False
    size = backend.get_vocab_size(with_added_tokens=False)
    return new == list(range(size, size + len(new)))
