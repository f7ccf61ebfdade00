"""What the benchmarks run: GPT-2's shape with random weights, in each system's format, and rows to continue.

Knows no system that runs them. The exports need the packages of `pip install .[bench]`.
"""

from __future__ import annotations

import csv
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from batchgen.model.find import BUNDLED_FOLDER

EOS = 50256


@dataclass(frozen=True)
class Row:
    """A prompt, as text and as the ids of that text, and how many tokens its continuation has."""

    prompt: str
    input_ids: list[int]
    new_tokens: int


def make_model(folder: Path) -> None:
    """Create a model with GPT-2's 124M shape and random weights, and its tokenizer.

    `ln_f` scaled by 3 gives logits the spread of a trained model's. The eos has no embedding, so its logit is 0 and
    never the largest: every row runs to its full length.
    """
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(bos_token_id=EOS, eos_token_id=EOS))
    network.transformer.ln_f.weight.data *= 3
    network.transformer.wte.weight.data[EOS] = 0
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUNDLED_FOLDER).save_pretrained(folder)


def make_rows(
    count: int,
    new_tokens: Sequence[int],
    seed: int = 0,
    *,
    folder: Path = BUNDLED_FOLDER,
    prompt_tokens: int | None = None,
) -> list[Row]:
    """Return rows of random words for the tokenizer in `folder`; each draws its output length from `new_tokens`.

    Prompts have `prompt_tokens` tokens before any that the tokenizer adds; by default 3 to 200 (log-normal, median 45).
    """
    source = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = sorted(token for token in tokenizer.get_vocab() if re.fullmatch("[Ġ▁][a-z]{2,}", token))
    rows = []
    for _ in range(count):
        length = prompt_tokens or min(200, max(3, round(source.lognormvariate(3.8, 0.8))))
        prompt = " ".join(word[1:] for word in source.choices(words, k=length))
        input_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][:length]
        prompt = tokenizer.decode(input_ids)
        rows.append(Row(prompt, tokenizer(prompt)["input_ids"], source.choice(new_tokens)))
    return rows


def read_lengths(path: Path, most: int = 200) -> list[int]:
    """Read the column `num_output_tokens` of a CSV, capped."""
    with path.open(newline="", encoding="utf-8") as file:
        return [min(most, int(line["num_output_tokens"])) for line in csv.DictReader(file)]


def export_ctranslate2(folder: Path, target: Path) -> None:
    """Export the model in float32; CTranslate2 quantizes when it loads it."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(target), quantization="float32")


def export_openvino(folder: Path, target: Path) -> None:
    """Export the model in float32 with its cache as state, and the tokenizer, in the form that OpenVINO GenAI expects.

    Not exported by optimum-intel, because version 2.2 requires transformers below 5.6.
    """
    import openvino
    from openvino_tokenizers import convert_tokenizer

    network = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    config = network.config
    head_size = config.n_embd // config.n_head
    past = [torch.zeros(2, config.n_head, 3, head_size) for _ in range(2 * config.n_layer)]
    inputs = torch.ones(2, 2, dtype=torch.long), torch.ones(2, 5, dtype=torch.long), torch.tensor([[3, 4]] * 2)
    model = openvino.convert_model(_Traceable(network), example_input=(*inputs, *past))
    _make_stateful(model, config.n_layer, [-1, config.n_head, -1, head_size])
    openvino.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    tokenizers = convert_tokenizer(AutoTokenizer.from_pretrained(folder), with_detokenizer=True)
    for name, tokenizer in zip(("openvino_tokenizer.xml", "openvino_detokenizer.xml"), tokenizers, strict=True):
        openvino.save_model(tokenizer, target / name)


def export_openvino_with_optimum(command: str, model: Path, target: Path) -> None:
    """Export any model as `export_openvino` does GPT-2, by optimum-intel's `optimum-cli`, at the path `command`."""
    from openvino import save_model
    from openvino_tokenizers import convert_tokenizer

    options = ["--task", "text-generation-with-past", "--weight-format", "fp32", "--disable-convert-tokenizer"]
    subprocess.run([command, "export", "openvino", "--model", str(model), *options, str(target)], check=True)
    tokenizers = convert_tokenizer(AutoTokenizer.from_pretrained(model), with_detokenizer=True)
    for name, tokenizer in zip(("openvino_tokenizer.xml", "openvino_detokenizer.xml"), tokenizers, strict=True):
        save_model(tokenizer, target / name)


def export_openvino_int8(export: Path, target: Path) -> None:
    """Copy an export in float32, with weights in 8 bits per output, as optimum-intel's `--weight-format int8` does."""
    import nncf
    import openvino

    shutil.copytree(export, target, ignore=shutil.ignore_patterns("openvino_model.*"))
    model = openvino.Core().read_model(export / "openvino_model.xml")
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)


def export_gguf(command: Sequence[str], precision: str, folder: Path, target: Path) -> None:
    """Convert the model by llama.cpp's `convert_hf_to_gguf.py`, run by `command`, to `f32`, `bf16` or `q8_0`."""
    arguments = [*command, str(folder), "--outtype", precision, "--outfile", str(target)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        reason = done.stdout.strip().rpartition("\n")[2]
        raise RuntimeError(f"the converter to GGUF ended with status {done.returncode}: {reason}")


class _Traceable(nn.Module):
    """GPT-2's forward without anything that a trace would freeze; keys and values are inputs and outputs."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Take ids and positions `[B, T]`, mask `[B, C]`, past keys and values `[B, heads, C - T, head size]`."""
        body = self.network.transformer
        columns = torch.arange(attention_mask.shape[1])
        causal = columns[None] <= columns[-input_ids.shape[1] :, None]  # [T, C]
        allowed = causal[None, None] & attention_mask[:, None, None].bool()  # [B, 1, T, C]
        mask = torch.where(allowed, 0.0, -65504.0)
        hidden = body.wte(input_ids) + body.wpe(position_ids)  # [B, T, H]
        present: list[torch.Tensor] = []
        for layer, block in enumerate(body.h):
            query, key, value = self._split(_linear(block.ln_1(hidden), block.attn.c_attn))
            present += [torch.cat([past[2 * layer], key], 2), torch.cat([past[2 * layer + 1], value], 2)]
            attended = functional.scaled_dot_product_attention(query, present[-2], present[-1], mask)
            hidden = hidden + _linear(attended.transpose(1, 2).flatten(2), block.attn.c_proj)
            inner = functional.gelu(_linear(block.ln_2(hidden), block.mlp.c_fc), approximate="tanh")
            hidden = hidden + _linear(inner, block.mlp.c_proj)
        return (self.network.lm_head(body.ln_f(hidden)), *present)

    def _split(self, joined: torch.Tensor) -> list[torch.Tensor]:
        """Split `[B, T, 3H]` into query, key and value `[B, heads, T, head size]`."""
        heads = self.network.config.n_head
        return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joined.chunk(3, -1)]


def _linear(hidden: torch.Tensor, layer: Any) -> torch.Tensor:
    return functional.linear(hidden, layer.weight.T, layer.bias)


def _make_stateful(model: Any, num_layers: int, cache_shape: list[int]) -> None:
    """Name inputs and outputs, reorder the cache by `beam_idx`, and turn it into a state that starts empty."""
    from openvino import PartialShape, Type
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    past = [f"past_key_values.{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]
    present = [name.replace("past_key_values", "present") for name in past]
    for port, name in zip(model.inputs, ["input_ids", "attention_mask", "position_ids", *past], strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(PartialShape(cache_shape if name in past else [-1, -1]))
    for port, name in zip(model.outputs, ["logits", *present], strict=True):
        port.get_tensor().set_names({name})
    beam_idx = ops.parameter([-1], Type.i32, name="beam_idx")
    beam_idx.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([beam_idx])
    for name in past:
        consumers = model.input(name).get_target_inputs()
        reordered = ops.gather(model.input(name), beam_idx, ops.constant(0))
        for consumer in consumers:
            consumer.replace_source_output(reordered.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, dict(zip(past, present, strict=True)))
    _start_empty(model, cache_shape)


def _start_empty(model: Any, cache_shape: list[int]) -> None:
    from openvino import opset13 as ops

    batch = ops.gather(ops.shape_of(model.input("input_ids")), ops.constant([0]), ops.constant(0))
    rest = [ops.constant([max(0, size)], dtype="int64") for size in cache_shape[1:]]
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            zero = ops.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([ops.broadcast(zero, ops.concat([batch, *rest], axis=0))])
    model.validate_nodes_and_infer_types()
