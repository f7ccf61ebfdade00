"""Decoder layers with few operations compute the same as transformers' own; a layer that does anything else stays."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import StableLmConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from batchgen.engines.continuous import network
from batchgen.engines.continuous.layer import ATTENTION
from batchgen.engines.continuous.linear import FUSED, FUSED_PLAIN, PACKED, UnpackedLinear, kernels_of
from batchgen.engines.continuous.network import slot_network
from batchgen.engines.fused.block import Block
from batchgen.engines.fused.norm import FusedNorm, fused_norm
from batchgen.engines.fused.recognize import fuse_layers
from batchgen.model import Checkpoint, Model
from batchgen.model.padding import pad
from batchgen.records import Request, SamplingParams, Sequence
from tests.support.models import ARCHITECTURES, GROUPED, WITH_BLOCKS, model_of


def blocks_of(model: Model) -> list[Block]:
    own = model.on_same_weights(ATTENTION)
    count = fuse_layers(own)
    blocks = [module for module in own.network.modules() if isinstance(module, Block)]
    assert count == len(blocks)
    return blocks


@pytest.mark.parametrize("family", WITH_BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_common_families_are_blocks(family: str, dtype: torch.dtype, checkpoint: Checkpoint) -> None:
    model = model_of(WITH_BLOCKS[family], checkpoint, attention="eager")
    model.network.to(dtype)
    assert len(blocks_of(model)) == 2


def test_heads_that_turn_in_part_are_left_to_transformers(checkpoint: Checkpoint) -> None:
    assert not blocks_of(model_of(StableLmConfig(partial_rotary_factor=0.5, **GROUPED), checkpoint))


def add_a_little(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, args, made: made * 1.001)


def squash(layer: nn.Module) -> None:
    layer.mlp.act_fn = nn.Tanh()


def swap(layer: nn.Module) -> None:
    layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj


@pytest.mark.parametrize(("change", "count"), [(add_a_little, 1), (squash, 1), (swap, 2)])
def test_a_layer_that_does_something_else_is_no_block(
    change: Callable[[nn.Module], None], count: int, checkpoint: Checkpoint
) -> None:
    model = model_of(ARCHITECTURES["llama"], checkpoint)
    change(model.network.model.layers[0])
    assert len(blocks_of(model)) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "norm",
    [LlamaRMSNorm(48, eps=1e-3), Gemma3RMSNorm(48, eps=1e-6), nn.LayerNorm(48)],
    ids=lambda norm: type(norm).__name__,
)
def test_a_fused_norm_is_the_same_function(norm: nn.Module, dtype: torch.dtype) -> None:
    nn.init.normal_(norm.weight)
    norm = norm.to(dtype)
    fused = fused_norm(norm)
    x = torch.randn(3, 5, 48).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), norm(x))


def test_what_is_no_norm_is_not_fused() -> None:
    assert fused_norm(nn.PReLU(48)) is None
    assert fused_norm(nn.SiLU()) is None


def test_a_fused_norm_gives_a_row_its_own_bits() -> None:
    norm, x = FusedNorm(torch.rand(576), 1e-5), torch.randn(130, 576)
    for dtype in (torch.float32, torch.bfloat16):
        whole = norm(x.to(dtype))
        for start, stop in ((0, 1), (1, 4), (3, 67), (129, 130)):
            assert torch.equal(norm(x[start:stop].to(dtype)), whole[start:stop])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_weights_of_blocks_are_held_once_and_given_back_bit_for_bit(family: str, checkpoint: Checkpoint) -> None:
    model = model_of(WITH_BLOCKS[family], checkpoint)
    row = pad([Sequence(Request(0, "0", "", SamplingParams()), 0, [5, 6, 7])], 0)
    with torch.inference_mode():
        before = model.forward(row)
    layer = next(module for module in model.network.modules() if isinstance(module, nn.ModuleList))[0]
    weights = [weakref.ref(parameter) for parameter in layer.parameters() if parameter.dim() == 2]
    own, _ = slot_network(model, is_owned=True)
    assert own is not None
    assert kernels_of(own.network) == FUSED
    assert not any(weight() is not None for weight in weights)
    assert sum(isinstance(module, UnpackedLinear) for module in layer.modules()) == len(weights)
    with torch.inference_mode():
        assert torch.equal(model.forward(row), before)


def fuse_wrongly(model: Model) -> int:
    """Make blocks whose last norm returns twice its result."""
    count = fuse_layers(model)
    for module in model.network.modules():
        if isinstance(module, Block):
            module.norm_inner.register_forward_hook(lambda norm, args, made: made * 2)
    return count


def fuse_and_fail(model: Model) -> int:
    count = fuse_layers(model)
    for module in model.network.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda block, args: {}["no such state"])
    return count


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("is_owned", [False, True])
@pytest.mark.parametrize("fuse", [fuse_wrongly, fuse_and_fail])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_that_fail_their_trial_leave_the_layers_as_they_were(
    family: str, fuse: Callable[[Model], int], is_owned: bool, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "fuse_layers", fuse)
    model = model_of(WITH_BLOCKS[family], checkpoint)
    own, reason = slot_network(model, is_owned=is_owned)
    assert own is not None, reason
    assert kernels_of(own.network) == PACKED
    assert (sum(isinstance(module, UnpackedLinear) for module in model.network.modules()) > 0) == is_owned


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_an_owned_model_without_slots_has_its_weights_back(
    family: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(WITH_BLOCKS[family], checkpoint)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    kinds = [type(module) for module in model.network.modules()]
    monkeypatch.setattr(network, "why_slots_fail", lambda model, own: "in a trial, slots failed")
    assert slot_network(model, is_owned=True) == (None, "in a trial, slots failed")
    assert [type(module) for module in model.network.modules()] == kinds
    after = model.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_run_that_was_begun_without_blocks_goes_on_without(checkpoint: Checkpoint) -> None:
    own, _ = slot_network(model_of(ARCHITECTURES["llama"], checkpoint), kernels=PACKED)
    assert own is not None
    assert kernels_of(own.network) == PACKED


def test_blocks_without_room_for_packed_weights_have_a_name_and_a_run_goes_on_with_them(checkpoint: Checkpoint) -> None:
    """They run on the weights as loaded, not with the plain kernels, which round in other places."""
    model = model_of(ARCHITECTURES["llama"], checkpoint)
    own, reason = slot_network(model, has_room=lambda num_bytes: False)
    assert own is not None, reason
    assert kernels_of(own.network) == FUSED_PLAIN
    again, _ = slot_network(model_of(ARCHITECTURES["llama"], checkpoint), kernels=FUSED_PLAIN)
    assert again is not None
    assert kernels_of(again.network) == FUSED_PLAIN
