"""Every operation of a layer gives a row the same bits in any batch; so do whole models."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from transformers import Cache, Gemma3TextConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from batchgen import Model
from batchgen.engines import finish_all, make_engine
from batchgen.engines.continuous import slot_model
from batchgen.engines.continuous.network import bits_of, slot_network
from batchgen.engines.continuous.raw_products import FixedProducts
from batchgen.engines.continuous.row_counts import BLOCK, FixedRows, RowCounts, find_row_counts
from batchgen.engines.continuous.rowwise import by_element, whole_size
from batchgen.engines.sampling.draws import draw, num_levels
from batchgen.engines.sampling.filters import filter_logits
from batchgen.engines.sampling.sampler import top_two
from batchgen.engines.trial.ladder import OTHER_BITS
from batchgen.model import Checkpoint
from batchgen.model.checkpoint import attention_kernel
from batchgen.model.padding import encode
from batchgen.records import BATCH_INVARIANT, EngineOptions, Request, SamplingParams, Sequence, bits_text
from tests.support.families import config_of
from tests.support.models import ARCHITECTURES, QWEN2, SHAPE, model_of
from tests.support.rows import ragged_prompts

DTYPES = [torch.float32, torch.bfloat16]
WIDTH = 576
LAYERS = ["sliding_attention", "full_attention"]
Operation = Callable[[torch.Tensor], torch.Tensor]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


BY_ELEMENT: dict[str, Operation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "exp2": torch.exp2,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "relu": F.relu,
}
BY_ROW: dict[str, Operation] = {
    "layer norm": lambda x: F.layer_norm(x, (WIDTH,)),
    "rms norm": lambda x: LlamaRMSNorm(WIDTH)(x),
    "softmax": lambda x: x.softmax(-1),
    "log softmax": lambda x: x.log_softmax(-1),
    "largest": lambda x: x.amax(-1, keepdim=True),
    "sum": lambda x: x[:, :32].float().sum(-1, keepdim=True),
    "running mass": lambda x: x.double().exp_().cumsum_(-1),
    "float32": lambda x: x.float(),
    "cosine": lambda x: x.float().cos(),
    "rotary": lambda x: torch.cat(apply_rotary_pos_emb(*x.view(len(x), 1, 3, 192).split([2, 1], 2), *TURNS), 2),
    "gate": lambda x: x[:, : WIDTH // 2] * x[:, WIDTH // 2 :],
    "largest token": lambda x: x.argmax(-1),
    "two largest": lambda x: torch.stack(top_two(x.float()), -1),
    "sorted": lambda x: x.sort(-1, descending=True).values,
    "twenty largest": lambda x: x.topk(20).values,
    "cut and drawn": lambda x: drawn(x.float()),
}
TURNS = (torch.rand(1, 1, 192, generator=torch.Generator().manual_seed(1)), torch.rand(1, 1, 192))


def drawn(logits: torch.Tensor) -> torch.Tensor:
    """Return tokens and closeness `[B, 2, 1]` of rows that all draw with the same numbers."""
    count = len(logits)
    margin, numbers = torch.full((count,), 1e-3), torch.full((count, num_levels(WIDTH)), 0.4, dtype=torch.float64)
    kept, unsure = filter_logits(logits, [40] * count, [0.9] * count, [0.01] * count, margin)
    return torch.stack(draw(kept, numbers, margin, logits, unsure), -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BY_ELEMENT)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_activation_gives_a_number_the_same_bits_wherever_it_stands(
    name: str, dtype: torch.dtype, threads: int, set_threads: Callable[[int], None]
) -> None:
    set_threads(threads)
    rows = numbers(70, 1100).to(dtype)
    whole = by_element(BY_ELEMENT[name], rows)
    for start, stop in ((0, 1), (3, 34), (5, 70), (69, 70)):
        assert torch.equal(by_element(BY_ELEMENT[name], rows[start:stop]), whole[start:stop])
    assert torch.equal(by_element(BY_ELEMENT[name], rows[2, 7:20]), whole[2, 7:20])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BY_ROW)
def test_an_operation_on_rows_gives_each_its_own_bits(name: str, dtype: torch.dtype) -> None:
    rows = numbers(130, WIDTH).to(dtype)
    with torch.inference_mode():
        whole = BY_ROW[name](rows)
        for start, stop in ((0, 1), (1, 4), (3, 67), (5, 130), (129, 130)):
            assert torch.equal(BY_ROW[name](rows[start:stop]), whole[start:stop])


def test_threads_get_whole_vectors() -> None:
    for threads in (1, 2, 3, 6, 16):
        for size in (1, 63, 64, 32769, 100_000, 1_000_001):
            whole = whole_size(size, 2, threads)
            assert whole >= size
            for parts in {min(threads, -(-whole // 32768)), threads if whole > 24576 else 1}:
                assert whole % parts == 0
                assert whole // parts % 64 == 0


# Linear layers.


class Sums(torch.nn.Module):
    """A product whose bits depend on the number of rows in its own way; it records the numbers."""

    def __init__(self, differs: Callable[[int], bool]) -> None:
        super().__init__()
        self.differs = differs
        self.counts: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.counts.append(len(x))
        found: torch.Tensor = x + 1 if self.differs(len(x)) else x * 1
        return found


@pytest.mark.parametrize(
    ("differs", "found"),
    [
        (lambda n: False, RowCounts()),
        (lambda n: n == 1, RowCounts(least=2)),
        (lambda n: n < 4, RowCounts(least=4)),
        (lambda n: n not in (1, 2, 40, 48, 64), RowCounts(block=64, fewer=(1, 2, 40, 48))),
        (lambda n: n >= 192, RowCounts(block=64, fewer=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48))),
    ],
)
def test_row_counts_with_the_same_bits_are_found(differs: Callable[[int], bool], found: RowCounts) -> None:
    assert find_row_counts(Sums(differs), 8, torch.float32) == found


def test_a_product_whose_rows_change_each_others_bits_has_no_row_counts() -> None:
    assert find_row_counts(lambda x: x + x[:1], 8, torch.float32) is None


def test_a_narrow_product_in_16_bits_has_blocks_alone() -> None:
    """So few outputs would hide most differences in summation order."""
    assert find_row_counts(Sums(lambda n: False), 8, torch.bfloat16) == RowCounts(block=64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_familys_own_products_give_a_row_its_own_bits(dtype: torch.dtype) -> None:
    rows, weight = numbers(70, 256).to(dtype), numbers(96, 256).to(dtype)
    experts, counts = numbers(3, 256, 96).to(dtype), (1, 60, 70)
    products: dict[str, Operation] = {
        "linear": lambda x: F.linear(x, weight),
        "from the right": lambda x: x @ weight.T,
        "from the left": lambda x: (weight @ x[:, :, None])[..., 0],
    }
    with torch.inference_mode(), FixedProducts():
        for name, product in products.items():
            whole = product(rows)
            for start, stop in ((0, 1), (3, 5), (7, 70)):
                assert torch.equal(product(rows[start:stop]), whole[start:stop]), name
        grouped = F.grouped_mm(rows, experts, offs=torch.tensor(counts, dtype=torch.int32))
        for start, stop, expert in ((0, 1, 0), (3, 5, 1), (64, 70, 2)):
            ends = torch.tensor([stop - start if place >= expert else 0 for place in range(3)], dtype=torch.int32)
            assert torch.equal(F.grouped_mm(rows[start:stop], experts, offs=ends), grouped[start:stop])


@pytest.mark.parametrize("num_rows", [1, 2, 3, 64, 65, 130])
def test_a_layer_multiplies_in_the_numbers_of_rows_that_agree(num_rows: int) -> None:
    product = Sums(lambda n: n not in (2, 64))
    layer = FixedRows(product, RowCounts(block=BLOCK, fewer=(2,)))
    rows = numbers(num_rows, 8)
    assert torch.equal(layer(rows), rows)
    assert set(product.counts) <= {2, 64}


# Whole models.

GROUPED = {"num_key_value_heads": 2, "max_position_embeddings": 256, **SHAPE}
CONFIGS = {
    "gpt2": ARCHITECTURES["gpt2"],
    "qwen2": QWEN2,
    "qwen3": Qwen3Config(head_dim=16, **GROUPED),
    "gemma3": Gemma3TextConfig(head_dim=16, sliding_window=40, layer_types=LAYERS, **GROUPED),
    "qwen3_moe": config_of("qwen3_moe"),
    "deepseek_v2": config_of("deepseek_v2"),
}
SCANS = ("mamba", "mamba2", "qwen3_5", "zamba2") if hasattr(Cache, "get_conv_state") else ()
CONFIGS |= {name: config_of(name) for name in SCANS}


# Rows, and whether they share prefixes, for each temperature.
BATCHES = {0: ((1, True), (3, True), (32, False)), 0.8: ((3, True), (5, False))}


def loaded(architecture: str, checkpoint: Checkpoint, dtype: torch.dtype) -> Model:
    config = CONFIGS[architecture]
    model = model_of(config, checkpoint, attention_kernel(config))
    return replace(model, network=model.network.to(dtype), dtype=dtype)


def logits_of(
    model: Model, prompts: list[list[int]], order: list[int], size: int, *, share: bool = True, temperature: float = 0
) -> dict[int, tuple[list[int], torch.Tensor]]:
    """Return each prompt's tokens and the logits `[N, V]` that they were chosen from."""
    steps: dict[int, list[torch.Tensor]] = {}

    def note(logits: torch.Tensor, rows: list[Sequence]) -> None:
        for row, sequence in enumerate(rows):
            steps.setdefault(sequence.request.index, []).append(logits[row].clone())

    params = SamplingParams(max_new_tokens=5, temperature=temperature, ignore_eos=True)
    rows = [Sequence(Request(i, str(i), "", params), 0, list(prompts[i])) for i in order]
    options = EngineOptions(engine="continuous", batch_size=size, share_prefixes=share)
    engine = make_engine(model, options, on_logits=note)  # type: ignore[arg-type]
    finished = list(finish_all(engine, rows))
    return {s.request.index: (s.output_ids, torch.stack(steps[s.request.index])) for s in finished}


def prompts_of(model: Model) -> list[list[int]]:
    """Return prompts of various lengths, some with a common beginning."""
    texts = [*ragged_prompts(5, longest=60), "the", "the a", *ragged_prompts(1, seed=8, longest=75)]
    requests = [Request(i, i, text, SamplingParams()) for i, text in enumerate(texts)]
    plain = [row.input_ids for row in encode(requests, model.checkpoint.codec)]
    return [*plain, *([*(plain[-1] * 3)[:70], *row[:9]] for row in plain[:4])]


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_at_any_batch_size_in_any_order_with_and_without_prefixes(
    checkpoint: Checkpoint, architecture: str, dtype: torch.dtype
) -> None:
    model = loaded(architecture, checkpoint, dtype)
    prompts = prompts_of(model)
    everything = list(range(len(prompts)))
    for temperature, batches in BATCHES.items() if dtype == torch.bfloat16 else [(0, BATCHES[0])]:
        expected = logits_of(model, prompts, everything, len(prompts), temperature=temperature)
        for size, share in batches:
            order = random.Random(size).sample(everything, len(everything))
            found = logits_of(model, prompts, order, size, share=share, temperature=temperature)
            for i, (tokens, logits) in expected.items():
                assert found[i][0] == tokens
                assert torch.equal(found[i][1], logits), f"prompt {i}, {size} rows, prefixes {share}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", SCANS)
def test_states_have_the_same_bits_where_rows_are_prefilled_alone(
    checkpoint: Checkpoint, architecture: str, dtype: torch.dtype
) -> None:
    own, _ = slot_network(loaded(architecture, checkpoint, dtype))
    assert own
    assert bits_of(own) == BATCH_INVARIANT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", SCANS[1:])
def test_a_trial_notices_a_scan_that_begins_at_pads(
    checkpoint: Checkpoint, architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in 16 bits, where the logits of its few rows can be equal."""
    monkeypatch.setattr(slot_model, "scans_columns", lambda config: False)
    own, _ = slot_network(loaded(architecture, checkpoint, dtype))
    assert own
    assert bits_of(own) == bits_text(OTHER_BITS)
