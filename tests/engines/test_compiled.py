"""Compiled loops compute what torch computes, each row with its own bits, and only where they pay."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from transformers import GPTNeoXConfig, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from batchgen.engines import finish_all, make_engine
from batchgen.engines.compiled import compiling, support, tensors, threads
from batchgen.engines.compiled.floats import TiledLinear
from batchgen.engines.compiled.int8 import CompiledInt8, TiledWeight
from batchgen.engines.compiled.layers import CompiledGate, CompiledNorm
from batchgen.engines.compiled.network import compile_blocks
from batchgen.engines.compiled.rows import GELU_TANH, SILU, norm
from batchgen.engines.compiled.support import cache_folder, compiler, num_compiled, why_not_compiled
from batchgen.engines.continuous import network, quantized
from batchgen.engines.continuous.linear import COMPILED, FUSED, kernels_of
from batchgen.engines.continuous.network import bits_of, slot_network
from batchgen.engines.fused.block import Block
from batchgen.engines.fused.product import ACTIVATIONS, ADD, GATE, Product, gated
from batchgen.engines.int8.support import ANY_INT8, INT8, INT8_COMPILED, why_no_int8
from batchgen.engines.trial import verdicts
from batchgen.model import Checkpoint, Model
from batchgen.records import BATCH_INVARIANT, EngineOptions, Request, SamplingParams, Sequence
from tests.support.forked import run_forked
from tests.support.models import SHAPE, WITH_BLOCKS, decide_alone, model_of
from tests.support.other_processors import compile_loops
from tests.support.processes import run_python

needs_int8 = pytest.mark.skipif(why_no_int8("cpu") is not None, reason="this processor multiplies no 8-bit integers")
DTYPES = [torch.float32, torch.bfloat16]
PROMPTS = ["a", "the dog ran to the house and", "one " * 45, "She said: why", "rain " * 33, "in the old house"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_norm_is_torchs(dtype: torch.dtype, has_bias: bool) -> None:
    x, weight, bias = torch.randn(5, 3, 77).to(dtype), torch.randn(77), torch.randn(77)
    norm = CompiledNorm(weight, bias if has_bias else None, 1e-3, dtype)
    wide = x.float()
    wanted = F.layer_norm(wide, (77,), weight, bias, 1e-3) if has_bias else F.rms_norm(wide, (77,), weight, 1e-3)
    torch.testing.assert_close(norm(x), wanted.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "activation"), [(SILU, F.silu), (GELU_TANH, lambda x: F.gelu(x, approximate="tanh"))])
def test_a_gate_is_torchs_for_small_and_huge_numbers(name: str, activation: object, dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-20, 20, 501), torch.tensor([-1e4, -88.0, -0.0, 0.0, 1e-30, 88.0, 1e4])]).to(dtype)
    inner = torch.cat([x, torch.full_like(x, 0.5)])[None]
    wanted = activation(x.float()) * 0.5  # type: ignore[operator]
    torch.testing.assert_close(CompiledGate(name, dtype)(inner)[0], wanted.to(dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_their_own_bits_and_broken_ones_stay_broken_alone(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(67, 154).to(dtype)
    x[5, 3], x[6, 80] = torch.nan, torch.inf
    for layer in (CompiledNorm(torch.rand(154), None, 1e-5, dtype), CompiledGate(SILU, dtype)):
        whole = layer(x)
        assert whole[:5].isfinite().all()
        assert whole[7:].isfinite().all()
        assert whole[5].isnan().any()
        assert not whole[6].isfinite().all()
        parts = [layer(x[start:stop]) for start, stop in ((0, 1), (1, 4), (4, 67))]
        assert torch.allclose(torch.cat(parts), whole, 0, 0, equal_nan=True)
        with monkeypatch.context() as patch:
            patch.setattr(threads, "WORTH_SHARING", 0)
            patch.setattr(torch, "get_num_threads", lambda: 5)
            assert torch.allclose(layer(x), whole, 0, 0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs", "has_bias"), [(96, 768, False), (50, 34, True), (1, 2, True)])
def test_a_product_of_floats_is_torchs_and_its_weight_can_be_restored(
    dtype: torch.dtype, outputs: int, inputs: int, has_bias: bool
) -> None:
    weight, x = torch.randn(inputs, outputs).to(dtype).T, torch.randn(15, inputs).to(dtype)
    if not TiledLinear.supports(weight, ADD):
        pytest.skip("this processor has no instruction for it")
    bias, other = torch.randn(outputs).to(dtype) if has_bias else None, torch.randn(15, outputs).to(dtype)
    wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    layer = TiledLinear(weight, bias)
    assert torch.equal(layer.weight.as_loaded(), weight)
    near = {"rtol": 1e-4 if dtype == torch.float32 else 0.016, "atol": 2e-4}
    torch.testing.assert_close(layer(x.view(3, 5, inputs)), wide.to(dtype).view(3, 5, outputs), **near)
    torch.testing.assert_close(layer(x, other), (wide + other.float()).to(dtype), **near)
    if has_bias:  # what follows is the same without
        wanted = ACTIVATIONS[GELU_TANH](wide).to(dtype)
        torch.testing.assert_close(TiledLinear(weight, bias, GELU_TANH)(x), wanted, rtol=0.02, atol=2e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("half", "name", "has_bias"), [(96, SILU, False), (60, GELU_TANH, False), (80, SILU, True), (1, SILU, False)]
)
def test_a_gate_may_follow_a_product_of_floats(dtype: torch.dtype, half: int, name: str, has_bias: bool) -> None:
    parts = [torch.nn.Linear(34, half, bias=has_bias, dtype=dtype) for _ in range(2)]
    weight, x = torch.cat([part.weight.detach() for part in parts]), torch.randn(15, 34).to(dtype)
    if not TiledLinear.supports(weight, GATE + name):
        pytest.skip("this processor has no instruction for it")
    bias = torch.cat([part.bias.detach() for part in parts]) if has_bias else None
    layer = TiledLinear(weight, bias, GATE + name)
    assert torch.equal(layer.weight.as_loaded(), weight)
    wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    wanted = gated(ACTIVATIONS[name], wide).to(dtype)
    torch.testing.assert_close(layer(x.view(3, 5, 34)).view(15, half), wanted, rtol=0.02, atol=2e-4)
    torch.testing.assert_close(Product(parts, GATE + name)(x), wanted, rtol=0.03, atol=1e-2)


def test_products_of_floats_stay_with_onednn_where_it_has_faster_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors.has_tiles.cache_clear()
    features = {"avx512f": True, "avx512bf16": True, "amx-bf16": True}
    monkeypatch.setattr(tensors.binding, "get_host_cpu_features", lambda: features)
    assert not TiledLinear.supports(torch.ones(4, 6, dtype=torch.bfloat16), "")
    assert TiledLinear.supports(torch.ones(4, 6), "")
    assert not TiledLinear.supports(torch.ones(4, 6), "relu")
    assert not TiledLinear.supports(torch.ones(4, 5), "")
    tensors.has_tiles.cache_clear()
    features.clear()
    assert not TiledLinear.supports(torch.ones(4, 6), "")
    tensors.has_tiles.cache_clear()


def tiled(
    outputs: int, inputs: int, places: tuple[int, ...] = (), *, has_bias: bool = False
) -> tuple[torch.Tensor, TiledWeight]:
    """Return random weights, and the same quantized; `places` stay in float32."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=random)
    bias = torch.randn(outputs, generator=random) if has_bias else None
    return weight, TiledWeight.of(weight, bias, torch.tensor(places, dtype=torch.int64))


def rounded_rows(x: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
    """Return `[N, I]` as 8-bit integers with a scale for 64 inputs give it back, and inputs `places` unchanged."""
    quiet = x.float().index_fill(1, torch.tensor(places, dtype=torch.int64), 0.0)
    groups = F.pad(quiet, (0, -quiet.shape[1] % 64)).unflatten(1, (-1, 64))
    peak = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    back = (((groups * (127 / peak) + 128.5).floor() - 128) * (peak / 127)).flatten(1)[:, : x.shape[1]]
    back[:, list(places)] = x[:, list(places)].float()
    return back


@needs_int8
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("outputs", "inputs", "places", "has_bias"),
    [(96, 768, (3, 7, 700), False), (50, 100, (), True), (1, 20, (2,), True)],
)
def test_a_product_in_integers_is_that_of_its_weight_and_rounded_rows(
    dtype: torch.dtype, outputs: int, inputs: int, places: tuple[int, ...], has_bias: bool
) -> None:
    _, weight = tiled(outputs, inputs, places, has_bias=has_bias)
    x, other = torch.randn(15, inputs).to(dtype), torch.randn(15, outputs).to(dtype)
    x[:, list(places)] *= 30
    x[4] = 0
    bias = torch.zeros(outputs) if weight.bias is None else weight.bias
    wide = rounded_rows(x, places) @ weight.of_outputs(torch.arange(outputs)).T + bias
    torch.testing.assert_close(weight.multiply(x), wide.to(dtype), rtol=0.01, atol=1e-3)
    torch.testing.assert_close(weight.multiply(x, other).float(), wide + other.float(), rtol=0.016, atol=0.02)
    for name in (SILU, ADD, *([GELU_TANH] if has_bias else [])):  # the same without
        found = CompiledInt8(weight, name)(x.view(3, 5, inputs))
        wanted = ACTIVATIONS[name](wide) if name != ADD else wide
        torch.testing.assert_close(found.float().view(15, outputs), wanted, rtol=0.03, atol=1e-3)


@needs_int8
@pytest.mark.parametrize(("half", "name", "has_bias"), [(96, SILU, False), (60, GELU_TANH, True), (80, SILU, False)])
def test_a_gate_may_follow_a_product_in_integers(half: int, name: str, has_bias: bool) -> None:
    weight, plain = tiled(2 * half, 130, (3, 80), has_bias=has_bias)
    layer = TiledWeight.of(weight, plain.bias, plain.places, None, GATE + name)
    x, some = torch.randn(15, 130), torch.tensor([0, half - 1, half, 2 * half - 1])
    assert torch.equal(layer.of_outputs(some), plain.of_outputs(some))
    assert torch.equal(layer.multiply(x), plain.multiply(x))
    wanted = gated(ACTIVATIONS[name], plain.multiply(x))
    torch.testing.assert_close(CompiledInt8(layer, GATE + name)(x), wanted, rtol=1e-5, atol=1e-5)


@needs_int8
def test_a_weight_in_tiles_is_off_by_half_a_step_and_keeps_given_scales_and_loud_inputs() -> None:
    weight, quantized = tiled(100, 200, (5, 150))
    back = quantized.of_outputs(torch.arange(100))
    assert torch.equal(back[:, [5, 150]], weight[:, [5, 150]])
    groups = F.pad(weight.index_fill(1, torch.tensor([5, 150]), 0.0), (0, 56)).view(100, 4, 64)
    half = (groups.abs().amax(-1) / 127 * 0.5001).repeat_interleave(64, 1)[:, :200]
    assert ((back - weight).abs() <= half).all()
    columns = weight[:96, :192].T.contiguous()  # as GPT-2 keeps its weights
    before = columns.clone()
    assert torch.equal(TiledWeight.of(columns.T, None, torch.tensor([5])).of_outputs(torch.arange(96))[:, 5], before[5])
    assert torch.equal(columns, before)
    integers, scale = torch.randint(-128, 128, (100, 200)), torch.rand(100) + 0.1
    given = TiledWeight.of((integers * scale[:, None]).bfloat16(), None, None, scale)
    assert torch.equal(given.of_outputs(torch.arange(100)), integers * scale[:, None])


@needs_int8
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_product_has_its_own_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, weight = tiled(130, 150, (5,), has_bias=True)
    x, other = torch.randn(201, 150).to(dtype), torch.randn(201, 130).to(dtype)
    x[6, 80], x[7, 5] = torch.nan, torch.inf
    products = [weight.multiply]
    if TiledLinear.supports(plain.to(dtype), ADD):
        products.append(TiledLinear(plain.to(dtype), None, ADD))
        layer = TiledLinear(plain.to(dtype), None, GATE + SILU)
        products.append(lambda x, _: layer(x))
    for product in products:
        assert_rows_keep_their_bits(product, x, other, monkeypatch)


def assert_rows_keep_their_bits(
    product: Callable[..., torch.Tensor], x: torch.Tensor, other: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = product(x, other)
    assert whole[6].isnan().all()
    assert not whole[7].isfinite().any()
    assert whole[[5, 8]].isfinite().all()
    for start, stop in ((0, 1), (1, 4), (4, 11), (11, 201)):
        alone = product(x[start:stop], other[start:stop])
        assert torch.allclose(alone, whole[start:stop], 0, 0, equal_nan=True)
    with monkeypatch.context() as patch:
        patch.setattr(threads, "WORTH_SHARING", 0)
        patch.setattr(torch, "get_num_threads", lambda: 5)
        assert torch.allclose(product(x, other), whole, 0, 0, equal_nan=True)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_layers_in_integers_are_compiled_and_batch_invariant(family: str, checkpoint: Checkpoint) -> None:
    model = model_of(WITH_BLOCKS[family], checkpoint)
    own, reason = slot_network(model, kernels=INT8_COMPILED, is_owned=True)
    assert own is not None, reason
    assert kernels_of(own.network) == INT8_COMPILED
    assert bits_of(own) == BATCH_INVARIANT
    assert sum(isinstance(module, CompiledInt8) for module in own.network.modules()) == 2 * 4
    left = [module for module in model.network.modules() if type(module) in (torch.nn.Linear, Conv1D)]
    assert not left  # each weight is held once
    wanted = tokens_in_slots(model, 4, PROMPTS, "int8")
    assert tokens_in_slots(model, 1, PROMPTS[::-1], "int8") == wanted[::-1]


def test_kept_loops_are_found_again_by_the_next_process(tmp_path: Path) -> None:
    code = """
from batchgen.engines.compiled import integers, products, rows
loops = [
    rows.norm("float32", is_centered=False), integers.quantize("float32"),
    products.multiply("float32", "float32", "", has_bias=False, adds=True),
]
"""
    exec(code, {})
    folder = support.cache_folder()
    assert folder is not None
    code += "from batchgen.engines.compiled.support import num_compiled; print(len(loops), num_compiled())"
    ended = run_python(code, tmp_path, XDG_CACHE_HOME=str(Path(folder).parents[1]))
    assert ended.stdout.split() == ["3", "0"], ended.stderr


def test_a_loop_that_is_not_kept_yet_counts_as_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "cache_folder", lambda: str(tmp_path))
    before = num_compiled()
    for _ in range(2):
        norm.__wrapped__("float32", is_centered=False)
        assert num_compiled() == before + 1


def test_a_verdict_on_loops_holds_for_their_source_only(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = f"continuous, {COMPILED}"
    verdicts.keep_verdict(bundled, engine, "right")
    assert verdicts.read_verdict(bundled, engine) == "right"
    compiler.cache_clear()
    monkeypatch.setattr(support, "_digest_of_loops", lambda: "another")
    assert verdicts.read_verdict(bundled, engine) is None
    compiler.cache_clear()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs Intel's instructions")
@pytest.mark.parametrize(
    ("processor", "features"),
    [("haswell", "+avx2,+fma"), ("skylake-avx512", "+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx2,+fma")],
    ids=["haswell", "skylake"],
)
def test_loops_compile_for_processors_with_fewer_instructions(
    processor: str, features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLVM would end the process at an instruction that there is not, even in a branch that is never taken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run_forked(compile_loops, processor, features) == 0


def tokens_in_slots(model: Model, size: int, prompts: list[str], quantize: str | None = None) -> list[list[int]]:
    params = SamplingParams(max_new_tokens=12)
    engine = make_engine(model, EngineOptions("continuous", batch_size=size, quantize=quantize), is_owned=True)
    tokenizer = model.checkpoint.tokenizer
    rows = [
        Sequence(Request(i, str(i), text, params), 0, list(tokenizer(text)["input_ids"]))
        for i, text in enumerate(prompts)
    ]
    return [row.output_ids for row in sorted(finish_all(engine, rows), key=lambda row: row.request.index)]


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_families_are_right_and_batch_invariant(
    family: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, caps, norms of heads, biases; the rows beside them and refilled slots change no token."""
    monkeypatch.setattr(network, "LEAST_PARAMETERS", 0)
    model = model_of(WITH_BLOCKS[family], checkpoint, attention="eager")
    own, reason = slot_network(model)
    assert own is not None, reason
    assert kernels_of(own.network) == COMPILED
    assert bits_of(own) == BATCH_INVARIANT
    blocks = [module for module in own.network.modules() if isinstance(module, Block)]
    has_gates = family != "gpt2" and tensors.has_tiles("float32")
    assert all(block.up.follow.startswith(GATE) == has_gates for block in blocks)  # type: ignore[union-attr, operator]
    wanted = [decide_alone(model, prompt, 12) for prompt in PROMPTS]
    assert tokens_in_slots(model, 4, PROMPTS) == wanted
    assert tokens_in_slots(model, 1, PROMPTS[::-1]) == wanted[::-1]


def test_small_models_and_those_of_runs_begun_without_are_not_compiled(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernels(asked: str | None = None) -> str:
        own, _ = slot_network(model_of(WITH_BLOCKS["qwen2"], checkpoint), kernels=asked)
        assert own is not None
        return kernels_of(own.network)

    assert kernels() == FUSED
    assert kernels(COMPILED) == COMPILED
    monkeypatch.setattr(network, "LEAST_PARAMETERS", 0)
    assert kernels() == COMPILED
    assert kernels(FUSED) == FUSED
    monkeypatch.setattr(quantized, "why_not_compiled", lambda: "Numba is not installed")
    assert kernels(COMPILED) == FUSED


@needs_int8
@pytest.mark.parametrize("config", [WITH_BLOCKS["qwen2"], GPTNeoXConfig(**SHAPE)], ids=["blocks", "no blocks"])
def test_integers_are_named_by_what_multiplies_them_and_a_run_goes_on_with_it(
    config: PretrainedConfig, checkpoint: Checkpoint
) -> None:
    for asked, wanted in ((ANY_INT8, INT8_COMPILED), (INT8_COMPILED, INT8_COMPILED), (INT8, INT8)):
        own, reason = slot_network(model_of(config, checkpoint), kernels=asked, is_owned=True)
        assert own is not None, reason
        assert kernels_of(own.network) == wanted


@pytest.mark.usefixtures("untried")
def test_loops_that_fail_their_trial_leave_fused_layers(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_wrongly(model: Model) -> int:
        count = compile_blocks(model)
        for module in model.network.modules():
            if isinstance(module, Block):
                module.norm.weight.mul_(2)  # type: ignore[operator]
        return count

    monkeypatch.setattr(network, "LEAST_PARAMETERS", 0)
    monkeypatch.setattr("batchgen.engines.compiled.network.compile_blocks", compile_wrongly)
    own, reason = slot_network(model_of(WITH_BLOCKS["qwen2"], checkpoint))
    assert own is not None, reason
    assert kernels_of(own.network) == FUSED


def test_it_says_why_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    why_not_compiled.cache_clear()
    assert why_not_compiled() is None
    why_not_compiled.cache_clear()
    monkeypatch.setattr(support, "compiler", lambda: "")
    assert why_not_compiled() == "Numba is not installed: pip install numba"
    why_not_compiled.cache_clear()
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert why_not_compiled() == "NUMBA_DISABLE_JIT is set"
    monkeypatch.delenv("NUMBA_DISABLE_JIT")
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")  # has no instruction of `tile`: LLVM would abort
    why_not_compiled.cache_clear()
    assert why_not_compiled() == "NUMBA_CPU_NAME is set"
    why_not_compiled.cache_clear()


@pytest.mark.parametrize(("mode", "is_trusted"), [(0o700, True), (0o755, True), (0o777, False), (0o500, None)])
def test_code_is_only_kept_where_nobody_else_can_write(
    mode: int, is_trusted: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find = cache_folder.__wrapped__  # the session's stays in use
    folder = find()
    assert folder is not None
    Path(folder).chmod(mode)
    if is_trusted is not None:  # root may write to any folder
        assert (find() == folder) == is_trusted
    Path(folder).chmod(0o700)


def test_long_loops_run_on_all_of_torchs_threads_and_short_ones_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    teams = []

    class Library:
        def GOMP_parallel(self, share: int, work: object, num_threads: int, flags: int) -> None:  # noqa: N802
            teams.append(num_threads)

    gate = CompiledGate(SILU, torch.float32)
    monkeypatch.setattr(threads, "openmp", Library)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for rows, size in ((2, 64), (64, 2048), (1, 1 << 20)):
        gate(torch.ones(rows, 2 * size))
    assert teams == [3]
    monkeypatch.setattr(threads, "openmp", lambda: None)
    x = torch.ones(64, 4096)
    assert torch.allclose(gate(x), F.silu(x[:, :2048]))


def test_the_library_is_the_one_that_torchs_threads_belong_to() -> None:
    library = threads.openmp()
    assert library is not None
    before = library.omp_get_max_threads()
    torch.set_num_threads(before + 1)
    try:
        assert library.omp_get_max_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_all_rows_are_computed_where_there_are_fewer_threads_than_asked_for(tmp_path: Path) -> None:
    code = """
import torch
from batchgen.engines.compiled.layers import CompiledGate
torch.set_num_threads(4)
x = torch.randn(64, 4096)
wanted = torch.nn.functional.silu(x[:, :2048]) * x[:, 2048:]
torch.testing.assert_close(CompiledGate("swish", torch.float32)(x), wanted, rtol=1e-5, atol=1e-6)
"""
    ended = run_python(code, tmp_path, OMP_THREAD_LIMIT="2")
    assert ended.returncode == 0, ended.stderr
