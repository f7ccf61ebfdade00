"""Weights that a checkpoint stores in 8-bit integers: how they are loaded, that they are restored, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from batchgen import Model, open_model
from batchgen.engines.int8.linear import quantize_weight
from batchgen.engines.int8.network import quantize
from batchgen.engines.int8.support import why_no_int8
from batchgen.errors import ModelError
from batchgen.model.find import BUNDLED_FOLDER
from batchgen.model.stored_integers import stored_scheme
from tests.support.command import failure, invoke, records
from tests.support.families import GROUPED
from tests.support.models import decide_alone

needs_int8 = pytest.mark.skipif(why_no_int8("cpu") is not None, reason="this processor multiplies no 8-bit integers")
Tensors = dict[str, torch.Tensor]
BY_OUTPUT = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
BY_TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
PROJECTION = "model.layers.1.self_attn.k_proj"


def compressed(form: str, weights: object = BY_OUTPUT, inputs: object = None, **more: object) -> dict[str, Any]:
    """Return what compressed-tensors writes into config.json."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    named = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
    return {**named, "config_groups": {"group_0": group}, **more}


def torchao(kind: str) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_version": 2}}}


def as_integers(path: str, integers: torch.Tensor, scale: torch.Tensor) -> Tensors:
    return {f"{path}.weight": integers, f"{path}.weight_scale": scale}


def as_words(path: str, integers: torch.Tensor, scale: torch.Tensor) -> Tensors:
    """Pack four integers into each 32-bit integer, the first one lowest."""
    fours = (integers.to(torch.int64) + 128).view(len(integers), -1, 4)
    words = (fours << torch.tensor([0, 8, 16, 24])).sum(-1).to(torch.int32)
    shape = torch.tensor(integers.shape)
    return {f"{path}.weight_packed": words, f"{path}.weight_scale": scale, f"{path}.weight_shape": shape}


def as_torchao(path: str, integers: torch.Tensor, scale: torch.Tensor) -> Tensors:
    zeros = torch.zeros_like(scale)
    return {f"{path}._weight_qdata": integers, f"{path}._weight_scale": scale, f"{path}._weight_zero_point": zeros}


WRITERS: dict[str, tuple[dict[str, Any], Callable[[str, torch.Tensor, torch.Tensor], Tensors]]] = {
    "int-quantized": (compressed("int-quantized", inputs=BY_TOKEN), as_integers),
    "pack-quantized": (compressed("pack-quantized"), as_words),
    "torchao": (torchao("Int8WeightOnlyConfig"), as_torchao),
    "torchao with inputs": (torchao("Int8DynamicActivationInt8WeightConfig"), as_torchao),
}


@pytest.fixture(scope="module")
def integers() -> Tensors:
    """The integers of one layer; the weights of all other layers are made of them."""
    torch.manual_seed(0)
    given = torch.randint(-128, 128, (64, 64), dtype=torch.int8)
    given[:, 0] = -128
    return {"integers": given, "scale": (torch.rand(64, 1) + 0.5).to(torch.bfloat16) / 500}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in floats."""
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("floats")
    LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **GROUPED)).save_pretrained(made)
    for path in BUNDLED_FOLDER.glob("tokenizer*"):
        shutil.copy(path, made)
    return made


def quantised(folder: Path, given: Tensors, writer: str, target: Path, **broken: torch.Tensor) -> Path:
    """The model with all of its inner linear layers in integers."""
    scheme, write = WRITERS[writer]
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        outputs, inputs = tensors.pop(name).shape
        some = given["integers"][:outputs, :inputs].clone(), given["scale"][:outputs].clone()
        tensors |= write(name.removesuffix(".weight"), *some)
    save_file(tensors | broken, target / "model.safetensors")
    set_scheme(target, scheme)
    return target


def set_scheme(folder: Path, scheme: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": scheme}))


def projection(model: Model) -> nn.Linear:
    layer = model.network.get_submodule(PROJECTION)
    assert isinstance(layer, nn.Linear)
    return layer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("writer", WRITERS)
def test_integers_become_floats_and_come_back(
    folder: Path, integers: Tensors, tmp_path: Path, writer: str, dtype: str
) -> None:
    layer = projection(open_model(str(quantised(folder, integers, writer, tmp_path / "m")), device="cpu", dtype=dtype))
    wanted, scale = integers["integers"][:16, :32], integers["scale"][:16].float()
    assert torch.equal(layer.weight, (wanted * scale).to(layer.weight.dtype))
    found, same = quantize_weight(layer.weight, given=layer.weight_scale)
    assert torch.equal(found, wanted)
    assert torch.equal(same, scale.flatten())


@needs_int8
@torch.inference_mode()
def test_layers_of_one_product_keep_the_scales_of_each(folder: Path, integers: Tensors, tmp_path: Path) -> None:
    network = open_model(str(quantised(folder, integers, "torchao", tmp_path / "m")), device="cpu").network
    attention, x = network.model.layers[0].self_attn, torch.randn(2, 3, 32)
    wanted = attention.q_proj(x), attention.v_proj(x)
    quantize(network)
    found = attention.q_proj(x), attention.v_proj(x)
    assert torch.equal(attention.q_proj.product.weight.groups[0].scale[48:], integers["scale"][:16].float().flatten())
    assert all((one - other).abs().max() < 0.02 * other.abs().max() for one, other in zip(found, wanted, strict=True))


def test_a_run_reads_them(folder: Path, integers: Tensors, tmp_path: Path) -> None:
    stored = quantised(folder, integers, "pack-quantized", tmp_path / "m")
    result = invoke("run", "-p", "My dog is", "--model", stored, "--max-new-tokens", 2)
    model = open_model(str(stored), device="cpu")
    assert records(result)[0]["text"] == model.checkpoint.codec.decode(decide_alone(model, "My dog is", 2))


ODD = {
    "GPTQ (4 bits)": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "AWQ (4 bits)": {"quant_method": "awq", "bits": 4},
    "bitsandbytes (8 bits)": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "bitsandbytes (4 bits)": {"load_in_4bit": True},
    "FP8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "MXFP4": {"quant_method": "mxfp4"},
    "something new": {"quant_method": "something new"},
    "an unnamed scheme": {},
    "torchao (Int4WeightOnlyConfig)": torchao("Int4WeightOnlyConfig"),
    "torchao (int4_weight_only)": {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    "compressed-tensors (format float-quantized)": compressed("float-quantized"),
    "compressed-tensors (weights: 4-bit int by group)": compressed(
        "pack-quantized", {**BY_OUTPUT, "num_bits": 4, "strategy": "group"}
    ),
    "compressed-tensors (weights: 8-bit int by channel, with zero points)": compressed(
        "int-quantized", {**BY_OUTPUT, "symmetric": False}
    ),
    "compressed-tensors (inputs: 8-bit int by tensor, static)": compressed(
        "int-quantized", inputs={**BY_TOKEN, "strategy": "tensor", "dynamic": False}
    ),
    "compressed-tensors (transform_config)": compressed(
        "int-quantized", transform_config={"config_groups": {"R1": {}}}
    ),
    "compressed-tensors (weights)": {"quant_method": "compressed-tensors", "format": "int-quantized"},
}


@pytest.mark.parametrize("name", ODD)
def test_other_schemes_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": ODD[name]}))
    with pytest.raises(ModelError) as raised:
        stored_scheme("m", tmp_path)
    assert f"quantised by {name}, which batchgen does not read: use the model that it was made from" in str(
        raised.value
    )


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"quantization_config": null}', '{"text_config": 3}'])
def test_a_config_that_says_nothing_of_it_is_of_floats(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert stored_scheme("m", tmp_path) is None


@pytest.mark.parametrize("command", ["run", "score", "verify", "plan", "bench", "doctor"])
def test_every_command_that_runs_a_model_refuses_them(folder: Path, tmp_path: Path, command: str) -> None:
    shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))  # never read
    (tmp_path / "m" / "model.safetensors").write_bytes(b"none")
    set_scheme(tmp_path / "m", ODD["GPTQ (4 bits)"])
    rows = [] if command in ("bench", "doctor") else ["-p", "x"]
    line = failure(invoke(command, *rows, "--model", tmp_path / "m"), 1)
    assert "GPTQ (4 bits)" in line
    assert "--quantize int8 or --dtype bfloat16" in line


def test_tokens_can_be_inspected_whatever_the_weights_are(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    set_scheme(tmp_path / "m", ODD["GPTQ (4 bits)"])
    assert invoke("inspect", "-p", "My dog", "--model", tmp_path / "m").exit_code == 0


BROKEN = {
    "has no scales": {"model.layers.0.weight": torch.ones(4, 4, dtype=torch.int8)},
    "not integers by output": {f"{PROJECTION}.weight_scale": torch.ones(16, 2)},
    "has zero points": {f"{PROJECTION}.weight_zero_point": torch.ones(16, 1, dtype=torch.int8)},
}


@pytest.mark.parametrize("why", BROKEN)
def test_tensors_that_are_not_as_the_config_says_are_refused(
    folder: Path, integers: Tensors, tmp_path: Path, why: str
) -> None:
    stored = quantised(folder, integers, "int-quantized", tmp_path / "m", **BROKEN[why])
    with pytest.raises(ModelError, match=why):
        open_model(str(stored), device="cpu")


def test_words_for_another_shape_are_refused(folder: Path, integers: Tensors, tmp_path: Path) -> None:
    shape = {f"{PROJECTION}.weight_shape": torch.tensor([16, 4096])}
    stored = quantised(folder, integers, "pack-quantized", tmp_path / "m", **shape)
    with pytest.raises(ModelError, match=r"k_proj.weight_packed is int32 16 x 8, for a weight of 16 x 4096"):
        open_model(str(stored), device="cpu")
