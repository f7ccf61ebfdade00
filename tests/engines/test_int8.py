"""Linear layers in 8-bit integers: what they compute, that rows do not affect each other, where they are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig
from transformers.pytorch_utils import Conv1D

from batchgen import Model, generate, score
from batchgen.engines import make_engine
from batchgen.engines.choice import KINDS
from batchgen.engines.compiled.int8 import TiledWeight
from batchgen.engines.continuous.linear import kernels_of
from batchgen.engines.continuous.quantized import quantize_network
from batchgen.engines.int8 import support
from batchgen.engines.int8.calibrate import loud_columns
from batchgen.engines.int8.linear import ZERO_POINT, Int8Linear, Int8Weight, quantize_rows, quantize_weight
from batchgen.engines.int8.network import quantize
from batchgen.engines.int8.support import INT8, INT8_COMPILED, check_int8, why_no_int8
from batchgen.engines.protocol import finish_all
from batchgen.errors import UsageError
from batchgen.model import Checkpoint, open_model
from batchgen.model.private import bytes_of_packed
from batchgen.planning.room import make_room
from batchgen.records import EngineOptions
from tests.support.command import failure, invoke, records, run
from tests.support.families import config_of
from tests.support.models import SHAPE, make_network, model_of
from tests.support.rows import encoded, ragged_prompts

needs_int8 = pytest.mark.skipif(why_no_int8("cpu") is not None, reason="this processor multiplies no 8-bit integers")
IDS = torch.arange(12).view(2, 6) * 7
OPTIONS = EngineOptions(quantize="int8")


def int8_layer(in_features: int = 96, out_features: int = 40, *, bias: bool = True) -> tuple[nn.Linear, nn.Module]:
    """Return a layer, and the same one quantized."""
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(in_features, out_features, bias=bias))
    layer = holder[0]
    quantize(holder)
    return layer, holder[0]


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(2500, 33) * torch.logspace(-3, 3, 2500)[:, None]
    integers, scale = quantize_weight(weight)
    assert integers.abs().amax() == 127
    assert ((integers * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_off_by_half_a_step_at_most(dtype: torch.dtype) -> None:
    x = (torch.randn(50, 64) * torch.logspace(-3, 3, 50)[:, None]).to(dtype)
    for groups in (1, 4):
        integers, scale = quantize_rows(x, groups)  # [G, 50, 64 / G], [G, 50, 1]
        back = (integers.float() - ZERO_POINT) * scale
        wanted = x.float().view(50, groups, -1).transpose(0, 1)
        assert ((back - wanted).abs() <= scale * 0.5001).all()


def test_rows_and_weights_of_zeros_stay_zeros() -> None:
    integers, scale = quantize_rows(torch.zeros(2, 8))
    assert ((integers.float() - ZERO_POINT) * scale == 0).all()
    integers, scale = quantize_weight(torch.zeros(2, 8))
    assert (integers * scale[:, None] == 0).all()


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (7, 96), (3, 5, 96)], ids=str)
def test_a_layer_is_nearly_the_same_function(shape: tuple[int, ...], bias: bool) -> None:
    layer, quantised = int8_layer(bias=bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        wanted = layer(x)
        assert (quantised(x) - wanted).abs().max() < 0.02 * wanted.abs().max()


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_at_any_number_of_rows(dtype: torch.dtype) -> None:
    holder = nn.Sequential(nn.Linear(96, 40)).to(dtype)
    quantize(holder)
    x = torch.randn(130, 96).to(dtype)
    with torch.inference_mode():
        together = holder(x)
        for rows in (1, 2, 7, 64):
            assert torch.equal(holder(x[-rows:]), together[-rows:])


@needs_int8
def test_what_is_no_number_stays_in_its_row() -> None:
    _, quantised = int8_layer()
    x = torch.randn(3, 96)
    with torch.inference_mode():
        wanted = quantised(x)
        x[1, 5] = torch.nan
        found = quantised(x)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])


@needs_int8
def test_columns_that_are_far_larger_than_the_others_cost_them_nothing() -> None:
    torch.manual_seed(0)
    plain, spared = nn.Sequential(nn.Linear(96, 40)), nn.Sequential(nn.Linear(96, 40))
    spared.load_state_dict(plain.state_dict())
    layer, x = plain[0], torch.randn(9, 96)
    x[:, [3, 50]] *= 300
    quantize(plain)
    quantize(spared, loud={"0": torch.tensor([3, 50])})
    with torch.inference_mode():
        wanted = layer(x)
        coarse, fine = ((holder(x) - wanted).abs().mean() for holder in (plain, spared))
        assert fine < coarse / 20
        assert torch.equal(spared(x[-1:]), spared(x)[-1:])


@needs_int8
@torch.inference_mode()
def test_layers_with_few_outputs_have_scales_for_groups_of_inputs() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(1536, 40), torch.randn(9, 1536)
    x[:, :768] *= 50
    layer.weight[:, :768] /= 50
    wide, narrow = Int8Weight.of(layer.weight.detach(), None), layer.weight.detach()
    assert len(wide.groups) == 2
    whole = quantize_weight(narrow)[0].float() @ (quantize_rows(x)[0][0].float() - ZERO_POINT).T
    wanted = x @ narrow.T
    coarse = whole.T * quantize_weight(narrow)[1] * quantize_rows(x)[1][0]
    assert (wide.multiply(x) - wanted).abs().mean() < (coarse - wanted).abs().mean() / 3
    assert torch.equal(wide.multiply(x[-1:]), wide.multiply(x)[-1:])


@needs_int8
def test_a_model_has_loud_columns_for_each_layer_and_the_same_every_time(bundled: Model) -> None:
    loud, again = loud_columns(bundled), loud_columns(bundled)
    layers = [path for path, layer in bundled.network.named_modules() if type(layer) in (nn.Linear, Conv1D)]
    assert sorted(loud) == sorted(layers)
    assert all(torch.equal(loud[path], again[path]) for path in layers)
    assert {len(places) for places in loud.values()} == {16, 48}  # of 256 and 768 inputs


@needs_int8
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gpt_neox"])
def test_a_network_gives_nearly_the_same_logits(name: str) -> None:
    network = make_network(name).eval()
    with torch.inference_mode():
        wanted = network(IDS).logits
        quantize(network)
        found = network(IDS).logits
    assert kernels_of(network) == INT8
    assert (found - wanted).abs().mean() < 0.05 * wanted.abs().mean()


@needs_int8
def test_layers_that_read_the_same_input_are_one_product_and_give_what_each_gives_alone() -> None:
    network, alone = make_network("llama").eval(), make_network("llama").eval()
    quantize(network)
    attention, x = network.model.layers[0].self_attn, torch.randn(2, 3, 32)
    assert attention.q_proj.product is attention.k_proj.product is attention.v_proj.product
    with torch.inference_mode():
        for name in ("q_proj", "k_proj", "v_proj"):
            holder = nn.Sequential(getattr(alone.model.layers[0].self_attn, name))
            quantize(holder)
            assert torch.equal(getattr(attention, name)(x), holder(x))


@needs_int8
def test_layers_of_one_product_may_be_asked_in_any_order_and_with_other_inputs() -> None:
    network = make_network("llama").eval()
    quantize(network)
    mlp, x, y = network.model.layers[0].mlp, torch.randn(2, 32), torch.randn(2, 32)
    with torch.inference_mode():
        wanted = mlp.gate_proj(x), mlp.up_proj(x)
        assert torch.equal(mlp.up_proj(x), wanted[1])
        mlp.gate_proj(y)
        assert torch.equal(mlp.up_proj(x), wanted[1])
        assert torch.equal(mlp.gate_proj(x), wanted[0])


@needs_int8
@pytest.mark.parametrize("kernels", [INT8, INT8_COMPILED])
@torch.inference_mode()
def test_a_layer_whose_weight_a_model_reads_itself_stays(checkpoint: Checkpoint, kernels: str) -> None:
    model = model_of(MambaConfig(state_size=8, **SHAPE), checkpoint, attention="eager")
    network = model.network
    wanted = network(IDS, use_cache=False).logits
    quantize_network(model, network, None, kernels)
    assert kernels_of(network) == kernels
    assert float((network(IDS, use_cache=False).logits - wanted).abs().max()) < 0.1 * float(wanted.abs().max())


def test_weights_that_nobody_else_needs_are_let_go() -> None:
    network = make_network("gpt2").eval()
    loaded = network.transformer.h[0].mlp
    quantize(make_network("gpt2"), network)
    assert isinstance(loaded.c_fc, Int8Linear)
    assert not any(parameter.shape == (32, 128) for parameter in network.parameters())


@needs_int8
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tokens_do_not_depend_on_the_batch(tiny_models: dict[str, Model], name: str) -> None:
    model, prompts = tiny_models[name], ragged_prompts(20)

    def tokens(batch_size: int, order: list[int]) -> dict[int, list[int]]:
        rows = encoded(prompts, model, max_new_tokens=8)
        engine = make_engine(model, replace(OPTIONS, batch_size=batch_size))
        return {row.request.index: row.output_ids for row in finish_all(engine, [rows[place] for place in order])}

    together = tokens(64, list(range(20)))
    assert together == tokens(1, list(range(20))) == tokens(7, list(range(20))[::-1])


@needs_int8
def test_python_runs_and_scores_in_int8(bundled: Model) -> None:
    [plain], [quantised] = score(["My dog is nice."], bundled), score(["My dog is nice."], bundled, quantize="int8")
    assert plain.logprob != quantised.logprob == pytest.approx(plain.logprob, rel=0.02)
    [result] = generate(["My dog is"], bundled, quantize="int8", max_new_tokens=4)
    assert len(result.output_ids) == 4


@needs_int8
def test_a_run_notes_int8_and_does_not_go_on_without(tmp_path: Path) -> None:
    rows, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    rows.write_text("My dog is\nThe king\n")
    stats, manifest = tmp_path / "stats.json", tmp_path / "manifest.json"
    result = run(rows, "-o", out, "--quantize", "int8", "--keep-store", "--stats", stats, "--manifest", manifest)
    assert result.exit_code == 0
    assert "int8 and float32" in result.stderr
    assert json.loads(stats.read_text())["quantize"] == "int8"
    facts = json.loads(manifest.read_text())
    assert (facts["options"]["--quantize"], facts["engine"]["kernels"]) == ("int8", INT8_COMPILED)
    rows.write_text("My dog is\nThe king\nA bird\n")
    assert "--quantize" in failure(run(rows, "-o", out, "--resume", "--keep-store"), 1)


@needs_int8
def test_a_plan_counts_fewer_bytes_of_weights() -> None:
    plain, quantised = (
        records(invoke("plan", "-p", "My dog is", "--model", "bundled", "--json", *more))[0]
        for more in ((), ("--quantize", "int8"))
    )
    assert quantised["weights_bytes"] < 0.4 * plain["weights_bytes"]
    assert (plain["quantize"], quantised["quantize"]) == (None, "int8")


def bytes_of_weight(weight: Int8Weight | TiledWeight) -> int:
    if isinstance(weight, TiledWeight):
        return sum(part.nbytes for part in (weight.integers, weight.scales, weight.loud))
    packed = [group.packed for group in weight.groups] + ([weight.loud.packed] if weight.loud else [])
    return sum(bytes_of_packed(each).nbytes for each in packed) + sum(group.scale.nbytes for group in weight.groups)


@needs_int8
@pytest.mark.parametrize("kernels", [INT8, INT8_COMPILED])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plan_predicts_what_a_model_in_integers_holds(
    dtype: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "Numba is not installed" if kernels == INT8 else None
    monkeypatch.setattr("batchgen.engines.continuous.memory.why_not_compiled", lambda: why)
    model = open_model("bundled", device="cpu", dtype=dtype)
    quantize_network(model, model.network, None, kernels)
    weights = {layer.product.weight for layer in model.network.modules() if isinstance(layer, Int8Linear)}
    held = sum(parameter.nbytes for parameter in model.network.parameters()) + sum(map(bytes_of_weight, weights))
    options = EngineOptions(quantize="int8")
    room = make_room(model.checkpoint, "cpu", dtype, KINDS["continuous"], options)
    assert room.weights_bytes == pytest.approx(held, rel=0.05)


# Layouts are read where products run fast, so both need the same machine.


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 40), (768, 100), (33, 1000)])
@torch.inference_mode()
def test_single_outputs_of_a_packed_weight_are_those_it_multiplies(
    inputs: int, outputs: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight, places = torch.randn(outputs, inputs).to(dtype), torch.tensor([3, 17])
    found = Int8Weight.of(weight, None, places).of_outputs(torch.arange(outputs))
    assert torch.equal(found[:, places], weight[:, places].float())
    assert (found - weight.float()).abs().max() < 0.51 * weight.abs().max() / 127


@needs_int8
@pytest.mark.parametrize("is_tied", [True, False])
@torch.inference_mode()
def test_an_embedding_is_rows_of_integers_tied_or_not(is_tied: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(num_key_value_heads=2, tie_word_embeddings=is_tied, **SHAPE)
    network, loaded = (AutoModelForCausalLM.from_config(config).eval().bfloat16() for _ in range(2))
    loaded.load_state_dict(network.state_dict())
    embedding = network.get_input_embeddings()
    wanted, step = embedding(IDS), embedding.weight.float().abs().max() / 127
    quantize(network, loaded)
    found = embedding(IDS)
    assert found.dtype == torch.bfloat16
    assert 0 < (found.float() - wanted.float()).abs().max() < step
    for each in (network, loaded):
        assert not any(parameter.dim() == 2 for parameter in each.parameters() if parameter.numel())
    rows = embedding.weight.rows
    assert (rows is network.lm_head.product.weight) == is_tied


@needs_int8
@torch.inference_mode()
def test_a_familys_own_embedding_still_scales_what_it_looks_up() -> None:
    config = config_of("gemma3")
    assert config is not None
    network = AutoModelForCausalLM.from_config(config).eval()
    embedding = network.get_input_embeddings()
    wanted = embedding(IDS)
    quantize(network)
    assert not isinstance(embedding.weight, nn.Parameter)
    assert (embedding(IDS) - wanted).abs().max() < 0.02 * wanted.abs().max()


@needs_int8
@torch.inference_mode()
def test_an_embedding_whose_rows_cannot_be_read_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("llama").eval()
    embedding = network.get_input_embeddings()
    wanted = embedding(IDS)
    monkeypatch.setattr("batchgen.engines.int8.packed_rows.BLOCK", 48)  # as another processor's layout
    quantize(network)
    assert torch.equal(embedding(IDS), wanted)


def test_where_there_is_no_vnni_or_a_device_of_another_kind_one_line_says_so(
    bundled: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = bundled.checkpoint.outline
    with pytest.raises(UsageError, match="run on a CPU only"):
        check_int8(OPTIONS, "cuda", config)
    monkeypatch.setattr("batchgen.model.private.has_vnni", lambda: False)
    with pytest.raises(UsageError, match="AVX512-VNNI"):
        check_int8(OPTIONS, "cpu", config)
    check_int8(EngineOptions(), "cpu", config)


@pytest.mark.parametrize(
    ("options", "beams", "why"),
    [(replace(OPTIONS, engine="reference"), 1, "as they were loaded"), (OPTIONS, 4, "no beam")],
)
def test_without_slots_there_are_no_8_bit_integers(
    bundled: Model, monkeypatch: pytest.MonkeyPatch, options: EngineOptions, beams: int, why: str
) -> None:
    monkeypatch.setattr(support, "why_no_int8", lambda device_type: None)
    with pytest.raises(UsageError, match=why):
        check_int8(options, "cpu", bundled.checkpoint.outline, beams)


def test_other_integers_are_not_known() -> None:
    assert "int8" in invoke("run", "-p", "x", "--quantize", "int3").stderr
