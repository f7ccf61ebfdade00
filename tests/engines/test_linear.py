"""Packed layers and the fused activation compute the same as the plain ones."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from batchgen.engines.continuous import linear
from batchgen.engines.continuous.linear import (
    PACKED,
    PARTLY,
    PLAIN,
    UnpackedLinear,
    kernels_of,
    speed_up,
    weight_of,
)
from batchgen.engines.continuous.packing import PackedLinear, can_pack, why_plain
from tests.support.models import make_network


def layer_of(kind: str, bias: bool) -> nn.Linear | Conv1D:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias) if kind == "linear" else Conv1D(40, 24)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (64, 24), (3, 5, 24), (1, 1, 24)], ids=str)
@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv1d", True)])
def test_a_packed_layer_is_the_same_function(kind: str, bias: bool, shape: tuple[int, ...]) -> None:
    layer = layer_of(kind, bias)
    x = torch.randn(shape)
    packed = PackedLinear(weight_of(layer), layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), layer(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed(x), F.linear(x, weight_of(layer), layer.bias), atol=1e-4, rtol=1e-4)


def test_a_packed_layer_takes_a_tensor_that_does_not_lie_in_order() -> None:
    layer = layer_of("linear", bias=True)
    x = torch.randn(6, 24, 5).transpose(1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(layer.weight, layer.bias)(x), layer(x), atol=1e-4, rtol=1e-4)


IDS = torch.arange(12).view(2, 6) * 7


def logits_of(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        return network(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gpt_neox"])
def test_a_network_sped_up_gives_the_same_logits(name: str) -> None:
    network = make_network(name).eval()
    wanted = logits_of(network)
    assert speed_up(network)
    assert not any(type(module) in (nn.Linear, Conv1D, NewGELUActivation) for module in network.modules())
    torch.testing.assert_close(logits_of(network), wanted, atol=1e-4, rtol=1e-4)


def test_gelu_becomes_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "can_pack", lambda device, dtype: False)  # a packed layer would be included
    network = make_network("gpt2").eval()
    speed_up(network)
    assert isinstance(network.transformer.h[0].mlp.act, nn.GELU)
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(network.transformer.h[0].mlp.act(x), NewGELUActivation()(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("activation", "is_fused"), [("gelu_new", True), ("gelu", False), ("relu", False)])
def test_a_packed_layer_applies_the_gelu_behind_it_and_nothing_else(activation: str, is_fused: bool) -> None:
    network = make_network("gpt2").eval()
    for block in network.transformer.h:
        block.mlp.act = ACT2FN[activation]
    wanted = logits_of(network)
    speed_up(network)
    mlp = network.transformer.h[0].mlp
    assert (mlp.c_fc.follow == "gelu tanh") == is_fused
    assert isinstance(mlp.act, nn.Identity) == is_fused
    assert mlp.c_proj.follow == ""
    torch.testing.assert_close(logits_of(network), wanted, atol=1e-4, rtol=1e-4)


def sharing(network: Any) -> Any:
    """Return another network on the same tensors."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})


def test_without_room_nothing_is_packed() -> None:
    network = make_network("gpt2").eval()
    kept = network.lm_head, network.transformer.h[0].attn.c_attn
    assert not speed_up(network, has_room=lambda num_bytes: False)
    assert (network.lm_head, network.transformer.h[0].attn.c_attn) == kept


def test_a_network_that_is_used_by_others_needs_room_for_all_of_its_weights() -> None:
    network = make_network("gpt2").eval()
    asked: list[int] = []
    speed_up(network, has_room=lambda num_bytes: bool(asked.append(num_bytes)))
    assert asked == [sum(place.weight_bytes for place in linear._places(network))]


def test_without_room_for_its_copy_the_tied_output_layer_stays() -> None:
    loaded = make_network("gpt2").eval()
    network, wanted = sharing(loaded), logits_of(loaded)
    asked: list[int] = []
    assert speed_up(network, loaded, has_room=lambda num_bytes: bool(asked.append(num_bytes)))
    assert asked == [loaded.transformer.wte.weight.nbytes]
    assert network.lm_head.weight is loaded.transformer.wte.weight
    assert isinstance(network.transformer.h[0].attn.c_attn, PackedLinear)
    torch.testing.assert_close(logits_of(network), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_network_that_handed_its_weights_over_gives_the_same_bits(name: str) -> None:
    loaded = make_network(name).eval()
    wanted = logits_of(loaded)
    own = {id(parameter) for parameter in loaded.get_input_embeddings().parameters()}
    weights = [weakref.ref(p) for p in loaded.parameters() if p.dim() == 2 and id(p) not in own]
    network = sharing(loaded)
    assert speed_up(network, loaded)
    assert sum(isinstance(module, UnpackedLinear) for module in loaded.modules()) >= 8
    assert torch.equal(logits_of(loaded), wanted)
    gone = [weight() is None for weight in weights]
    assert sum(gone) >= 8  # everything but position embeddings


def test_a_machine_without_packed_layers_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "can_pack", lambda device, dtype: False)
    network = make_network("llama").eval()
    assert not speed_up(network)
    assert type(network.model.layers[0].mlp.up_proj) is nn.Linear


@pytest.mark.parametrize("device", ["cuda", "mps", "meta"])
def test_only_a_cpu_packs(device: str) -> None:
    assert why_plain(torch.device(device), torch.float32) == "weights are packed on the CPU only"


def test_what_is_packed_depends_on_no_clock() -> None:
    assert can_pack(torch.device("cpu"), torch.float32)
    assert "time" not in vars(linear)


def test_16_bit_floats_that_cannot_be_packed_stay() -> None:
    assert not speed_up(make_network("llama").half().eval())


class Counting(nn.Module):
    """Records, each time a child is replaced, how many of the `watched` layers are alive."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 8)
        self.watched: list[weakref.ref[nn.Module]] = []
        self.alive: list[int] = []
        for i in range(num_layers):
            layer = nn.Linear(8, 8)
            self.watched.append(weakref.ref(layer))
            setattr(self, f"layer{i}", layer)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, PackedLinear):
            self.alive.append(sum(layer() is not None for layer in self.watched))


def test_weights_that_were_packed_are_let_go_one_by_one() -> None:
    network = Counting(6)
    assert speed_up(network)
    assert network.alive[-1] <= 1
    assert network.alive == sorted(network.alive, reverse=True)


def test_which_kernels_a_network_runs_on_is_seen_in_it() -> None:
    networks = {wanted: make_network("gpt2").eval() for wanted in (PACKED, PARTLY, PLAIN)}
    for wanted, network in networks.items():
        assert speed_up(network, kernels=wanted) == (wanted != PLAIN)
        assert kernels_of(network) == wanted


def test_a_run_that_was_begun_packed_goes_on_as_loaded_where_there_is_no_room() -> None:
    network = make_network("gpt2").eval()
    speed_up(network, kernels=PACKED, has_room=lambda num_bytes: False)
    assert kernels_of(network) == PLAIN
