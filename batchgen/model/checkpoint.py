"""A model without its weights: config, tokenizer, eos and pad tokens. Only decoder-only models are accepted.

A tokenizer is read with `tokenizers` alone if that is certain to give the same ids as transformers, otherwise with
transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.errors import ModelError
from batchgen.model.checks import check_config, check_files
from batchgen.model.config_view import ConfigView, read_config_view
from batchgen.model.find import BUNDLED_FOLDER, has_tokenizer
from batchgen.model.guarded import GuardedTokenizer
from batchgen.model.private import supports_sdpa
from batchgen.model.quiet import one_line, quiet
from batchgen.model.text_part import text_part
from batchgen.model.tokenizer import LightTokenizer, Tokenizer
from batchgen.model.tokenizer_files import read_light_tokenizer
from batchgen.model.tokenizer_trial import judge_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Checkpoint:
    """Everything known about a model without its weights.

    `outline` is the part of the config that planning needs and `codec` encodes and decodes. Either may have been read
    without transformers.
    """

    name: str
    folder: Path
    outline: ConfigView | PretrainedConfig
    codec: Tokenizer
    eos_token_ids: frozenset[int]

    @cached_property
    def config(self) -> PretrainedConfig:
        """The complete config, for building networks."""
        return _read_config(self.name, self.folder) if isinstance(self.outline, ConfigView) else self.outline

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The transformers tokenizer, for chat templates and for a caller's own code."""
        codec = self.codec.tokenizer if isinstance(self.codec, GuardedTokenizer) else self.codec
        return _read_tokenizer(self.name, self.folder) if isinstance(codec, LightTokenizer) else codec

    @cached_property
    def pad_token_id(self) -> int:
        """The token used as padding: eos, or 0 if the model has none. It is masked, so any token would do."""
        own = self.codec.eos_token_id
        return own if own in self.eos_token_ids else min(self.eos_token_ids, default=0)

    @cached_property
    def n_positions(self) -> int | None:
        """The maximum number of tokens per row, prompt and new ones; None if the architecture has no limit."""
        text = self.outline.get_text_config()
        limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
        return int(limit) if limit else None

    @property
    def position_kind(self) -> str:
        """How the model encodes positions: `absolute` (a vector for each position), `rotary` or `alibi`.

        The last two are relative: shifting all positions of a row by the same number changes nothing.
        """
        text = self.outline.get_text_config()
        if text.model_type in ("bloom", "mpt") or getattr(text, "alibi", False):
            return "alibi"
        is_rotary = any(getattr(text, name, None) for name in ("rope_parameters", "rope_theta", "rotary_dim"))
        return "rotary" if is_rotary else "absolute"

    @property
    def vocab_size(self) -> int:
        """The number of tokens that the model has an embedding for."""
        return int(self.outline.get_text_config().vocab_size)


def read_checkpoint(name: str, folder: Path) -> Checkpoint:
    """Read config, tokenizer and eos tokens of a found model.

    Raises `ModelError` for anything but a decoder-only language model with a tokenizer that fits it.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: it is not a model folder")
    check_files(folder)
    check_config(folder)
    outline = read_config_view(folder) or _read_config(name, folder)
    if not has_tokenizer(folder):
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json): save the tokenizer beside the model")
    verdict = "plain" if folder == BUNDLED_FOLDER else judge_tokenizer(folder)
    light = read_light_tokenizer(folder, outline) if isinstance(outline, ConfigView) else None
    codec = GuardedTokenizer(light or _read_tokenizer(name, folder), name, is_plain=verdict == "plain")
    checkpoint = Checkpoint(name, folder, outline, codec, _eos_token_ids(folder, outline, codec))
    if codec.vocab_size > checkpoint.vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has {codec.vocab_size} tokens, but the model {checkpoint.vocab_size}: "
            "they do not match"
        )
    if checkpoint.n_positions is not None and checkpoint.n_positions < 1:
        raise ModelError(f"{folder}: the model has {checkpoint.n_positions} positions, too few for a prompt")
    return checkpoint


def _read_config(name: str, folder: Path) -> PretrainedConfig:
    with quiet(), one_line(name, folder):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        _forget_quantization(config)
        if text := text_part(config):
            return text
        _check_architecture(name, config)
        return config


def _forget_quantization(config: PretrainedConfig) -> None:
    """Drop the quantization config: networks are built in floats, and `model.stored_integers` reads stored integers."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config


def _read_tokenizer(name: str, folder: Path) -> PreTrainedTokenizerBase:
    with quiet(), one_line(name, folder):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, padding_side="left"
        )


def _check_architecture(name: str, config: PretrainedConfig) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    architecture = (config.architectures or [type(config).__name__])[0]
    fix = "batchgen runs decoder-only language models, such as gpt2"
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"model {name} is an encoder-decoder model ({architecture}): {fix}")
    is_whole = config.get_text_config() is not config
    loads_part = is_whole and config.get_text_config().model_type in CAUSAL  # as Llama 4's network for text does
    causal = architecture.replace("ForConditionalGeneration", "ForCausalLM") if loads_part else architecture
    if config.model_type not in CAUSAL or (config.architectures and causal not in _flatten(CAUSAL.values())):
        if is_whole:
            fix = "transformers cannot run its text part alone: use a text-only model of the same family"
        raise ModelError(f"model {name} is not a causal language model ({architecture}): {fix}")


def _flatten(names: Any) -> set[str]:
    return {name for entry in names for name in ((entry,) if isinstance(entry, str) else entry)}


def _eos_token_ids(folder: Path, outline: ConfigView | PretrainedConfig, codec: Tokenizer) -> frozenset[int]:
    """All eos ids that tokenizer, config and generation_config name; nothing else is read from generation_config."""
    named: list[object] = [codec.eos_token_id, getattr(outline.get_text_config(), "eos_token_id", None)]
    try:
        generation_config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        named.append(generation_config.get("eos_token_id"))
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    ids = [i for entry in named for i in (entry if isinstance(entry, list) else [entry])]
    return frozenset(i for i in ids if isinstance(i, int) and 0 <= i < outline.get_text_config().vocab_size)


def attention_kernel(config: PretrainedConfig) -> str:
    """The attention implementation: "sdpa" if the architecture supports it, otherwise "eager"."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return "sdpa" if supports_sdpa(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]) else "eager"
