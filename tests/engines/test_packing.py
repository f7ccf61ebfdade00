"""A packed weight acts as a tensor for code that reads it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from batchgen.engines import make_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.engines.continuous.linear import UnpackedLinear
from batchgen.engines.continuous.network import slot_network
from batchgen.engines.continuous.packing import PackedLinear, can_pack
from batchgen.model import Checkpoint
from batchgen.model.checkpoint import attention_kernel
from tests.support.families import config_of
from tests.support.models import model_of

pytestmark = pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.float32), reason="no packed layout here")


def test_a_hidden_weight_is_read_like_the_tensor_that_was_packed() -> None:
    weight, bias, x = torch.randn(6, 4), torch.randn(6), torch.randn(3, 4)
    packed = PackedLinear(weight, bias)
    for layer in (packed, UnpackedLinear(packed, slice(0, 6), is_conv1d=False)):
        assert layer.weight.shape == weight.shape
        assert torch.equal(layer.weight.type(torch.float64), weight.double())
        assert torch.equal(F.linear(x, layer.weight, layer.bias), F.linear(x, weight, bias))
        assert torch.equal(torch.as_tensor(layer.bias), bias)
        assert (layer.in_features, layer.out_features) == (4, 6)


@pytest.mark.parametrize("name", ["mamba", "longcat_flash"])
def test_families_that_read_weights_and_biases_of_their_layers_have_slots_where_the_run_owns_the_model(
    name: str, checkpoint: Checkpoint
) -> None:
    config = config_of(name)
    model = model_of(config, checkpoint, attention_kernel(config))
    assert isinstance(make_engine(model, is_owned=True), ContinuousEngine)


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mamba"])
def test_a_run_that_owns_its_model_has_slots_in_16_bits_at_its_first_start(name: str, checkpoint: Checkpoint) -> None:
    config = config_of(name)
    model = model_of(config, checkpoint, attention_kernel(config))
    narrow = replace(model, network=model.network.to(torch.bfloat16), dtype=torch.bfloat16)
    own, reason = slot_network(narrow, is_owned=True)
    assert own is not None, reason
    assert any(isinstance(module, UnpackedLinear) for module in narrow.network.modules())
