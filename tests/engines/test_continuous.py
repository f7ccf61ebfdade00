"""The engine `continuous` against `generate` on unpadded single prompts; shared prefixes; running out of memory."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MistralConfig, PretrainedConfig

import batchgen
from batchgen import Model
from batchgen.engines import make_engine
from batchgen.engines.choice import CONTINUOUS
from batchgen.engines.continuous import network
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.engines.continuous.memory import PAGE, PREFILL_TOKENS, SlotMemory
from batchgen.engines.continuous.network import slot_network
from batchgen.engines.continuous.pages import PagePool
from batchgen.engines.continuous.slot_model import SlotModel
from batchgen.engines.continuous.slots import PrefillView, Slot, StepView
from batchgen.engines.sampling.sampler import Sampler
from batchgen.errors import ModelError, UsageError
from batchgen.model import Checkpoint, open_model, probe
from batchgen.model.footprint import footprint_of
from batchgen.planning.backoff import Backoff
from batchgen.planning.memory import BatchLimits
from batchgen.records import Batch, Request, SamplingParams, Sequence
from tests.support.engines import drive, slots_of
from tests.support.models import ARCHITECTURES, EOS, QWEN2, SHAPE, WITH_SLOTS, generate_alone, model_of
from tests.support.results import output_ids
from tests.support.rows import RAIN, encoded, ragged_prompts


@pytest.fixture(scope="module")
def models(tiny_models: dict[str, Model], checkpoint: Checkpoint) -> dict[str, Model]:
    return {**tiny_models, "qwen2": model_of(QWEN2, checkpoint)}


@pytest.fixture(scope="module")
def untouched(folders: dict[str, Path], checkpoint: Checkpoint) -> dict[str, Model]:
    """The same models, none of them changed in place by an engine."""
    loaded = {name: open_model(str(folders[name]), device="cpu") for name in WITH_SLOTS if name in folders}
    return {**loaded, "qwen2": model_of(QWEN2, checkpoint), "bundled": open_model("bundled", device="cpu")}


def tokens_of(sequences: Iterable[Sequence]) -> dict[object, list[int]]:
    return {(s.request.id, s.sample_index): s.output_ids for s in sequences}


def with_eos(model: Model, *eos: int) -> Model:
    return replace(model, checkpoint=replace(model.checkpoint, eos_token_ids=frozenset(eos)))


# The same tokens as alone.


@pytest.mark.parametrize("architecture", WITH_SLOTS)
def test_greedy_tokens_equal_unpadded_generate(
    models: dict[str, Model], untouched: dict[str, Model], architecture: str
) -> None:
    prompts = [*ragged_prompts(6), "the", "the a", *ragged_prompts(1, seed=8, longest=75)]
    alone = [generate_alone(untouched[architecture], prompt, max_new_tokens=8) for prompt in prompts]
    for batch_size in (1, 2, 7, 32):
        order = random.Random(batch_size).sample(range(len(prompts)), len(prompts))
        results = batchgen.generate(
            [prompts[i] for i in order],
            models[architecture],
            engine="continuous",
            batch_size=batch_size,
            max_new_tokens=8,
        )
        assert output_ids(results) == [alone[i] for i in order]


def test_greedy_tokens_of_the_bundled_model_equal_unpadded_generate(
    bundled: Model, untouched: dict[str, Model]
) -> None:
    prompts = RAIN + ragged_prompts(4, seed=1, longest=60)
    alone = [generate_alone(untouched["bundled"], prompt, max_new_tokens=16) for prompt in prompts]
    assert output_ids(batchgen.generate(prompts, bundled, engine="continuous", max_new_tokens=16)) == alone


def test_rows_grow_over_the_ends_of_pages(tiny_models: dict[str, Model], untouched: dict[str, Model]) -> None:
    prompts = [" ".join(["rain"] * length) for length in (1, PAGE - 2, PAGE - 1, PAGE, PAGE + 1)]
    alone = [generate_alone(untouched["gpt2"], prompt, max_new_tokens=PAGE + 2) for prompt in prompts]
    results = batchgen.generate(prompts, tiny_models["gpt2"], batch_size=3, max_new_tokens=PAGE + 2)
    assert output_ids(results) == alone


def slot_model_of(model: Model) -> SlotModel:
    own, reason = slot_network(model)
    assert own is not None, reason
    return SlotModel(own)


def limits_for(model: Model, num_rows: int | None = None) -> BatchLimits:
    footprint = footprint_of(model.checkpoint, model.dtype_name)
    return CONTINUOUS.limits(footprint, "cpu", 1 << 34, num_rows)


def sampler_of(model: Model) -> Sampler:
    return Sampler(model.checkpoint.eos_token_ids, model.checkpoint.tokenizer, recompute=model.logits_alone)


def plain_logits(model: Model, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model.network(torch.tensor([token_ids]), use_cache=False).logits[0, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", WITH_SLOTS)
def test_logits_are_those_of_plain_forwards(
    models: dict[str, Model], untouched: dict[str, Model], architecture: str
) -> None:
    slot_model = slot_model_of(models[architecture])
    source = random.Random(0)
    for prefix_ids in ([], source.choices(range(EOS), k=9)):
        rows = [[*prefix_ids, *source.choices(range(EOS), k=length)] for length in (1, 5, PAGE - 1, PAGE, 40)]
        sequences = [Sequence(Request(i, i, ""), 0, list(ids)) for i, ids in enumerate(rows)]
        with torch.inference_mode():
            prefix = slot_model.compute_prefix(prefix_ids) if prefix_ids else None
            slots = [Slot(prefix) for _ in rows]
            found = slot_model.prefill(sequences, slots)
            for _ in range(4):
                wanted = torch.stack([plain_logits(untouched[architecture], ids) for ids in rows])
                scale = max(1.0, float(wanted.abs().max()))  # these random models' logits are large
                assert float((found - wanted).abs().max()) < 1e-4 * scale
                added = [source.randrange(EOS) for _ in rows]
                rows = [[*ids, token] for ids, token in zip(rows, added, strict=True)]
                found = slot_model.step(added, slots)
            for slot in slots:
                slot_model.cache.close(slot)


def test_the_last_mlp_sees_one_column_of_a_prefill(models: dict[str, Model]) -> None:
    slot_model = slot_model_of(models["gpt2"])
    seen: list[int] = []
    hooks = [
        block.up.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        for block in slot_model.model.network.transformer.h
    ]
    with torch.inference_mode():
        slot_model.prefill(
            [Sequence(Request(0, 0, ""), 0, [1, 2, 3]), Sequence(Request(1, 1, ""), 0, [4])], [Slot(), Slot()]
        )
        slot_model.compute_prefix([1, 2, 3, 4])
    for hook in hooks:
        hook.remove()
    others = len(hooks) - 1
    assert seen == [*[3] * others, 1, *[4] * others, 1]


SAMPLING = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "num_samples": 2},
    {"temperature": 1.2, "min_p": 0.02, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_tokens_are_those_of_the_reference_in_any_batch_and_order(bundled: Model, options: dict[str, float]) -> None:
    rows = [{"id": f"row-{i}", "prompt": prompt} for i, prompt in enumerate(RAIN + ragged_prompts(3, 5, longest=20))]
    options = {"max_new_tokens": 6, "seed": 7, **options}

    def run(rows: list[dict[str, str]], **how: Any) -> dict[object, tuple[int, ...]]:
        return {(r.id, r.sample_index): r.output_ids for r in batchgen.generate(rows, bundled, **options, **how)}

    wanted = run(rows, engine="reference")
    for batch_size in (1, 7, 32):
        shuffled = random.Random(batch_size).sample(rows, len(rows))
        assert run(shuffled, engine="continuous", batch_size=batch_size) == wanted


def test_each_row_has_its_own_sampling(tiny_models: dict[str, Model]) -> None:
    model = tiny_models["gpt2"]
    own: list[dict[str, Any]] = [
        {"max_new_tokens": 1}, {"temperature": 0.8, "max_new_tokens": 9}, {"stop": " a"}, {"repetition_penalty": 1.5},
        {"temperature": 1.0, "top_k": 5, "num_samples": 3}, {"max_new_tokens": 20}, {"no_repeat_ngram_size": 1},
        {"temperature": 1.0, "top_p": 0.5}, {"min_new_tokens": 6},
    ]  # fmt: skip
    rows = [{"id": i, "prompt": RAIN[i % 3], "sampling": sampling} for i, sampling in enumerate(own)]
    alone = [r for row in rows for r in batchgen.generate([row], model, engine="reference", max_new_tokens=7)]
    for batch_size in (2, 16):
        together = batchgen.generate(rows, model, engine="continuous", batch_size=batch_size, max_new_tokens=7)
        assert [(r.output_ids, r.text, r.finish_reason) for r in together] == [
            (r.output_ids, r.text, r.finish_reason) for r in alone
        ]


def test_a_single_token_needs_no_step(bundled: Model) -> None:
    engine = slots_of(bundled, 2)
    finished = list(drive(engine, [encoded([*RAIN, "The", "She"], bundled, max_new_tokens=1)]))
    assert {len(s.output_ids) for s in finished} == {1}
    assert (len(finished), engine.stats.new_tokens, engine.stats.decode_work) == (5, 5, 0)
    [pool] = engine.slot_model.cache.pools
    assert pool._free == list(range(pool.num_used))


def test_a_row_may_end_with_its_first_token(bundled: Model) -> None:
    first = {generate_alone(bundled, prompt, max_new_tokens=1)[0] for prompt in RAIN[:2]}
    rows = encoded([*RAIN[:2], "The"], bundled, max_new_tokens=5)
    finished = list(drive(slots_of(with_eos(bundled, *first), 2), [rows]))
    assert [row.finish_reason for row in rows[:2]] == ["stop", "stop"]
    assert [row.num_output_tokens for row in rows[:2]] == [1, 1]
    assert len(finished) == 3


def test_a_stop_string_ends_its_row_alone(bundled: Model) -> None:
    whole, other = batchgen.generate(["My dog is", "The"], bundled, max_new_tokens=20)
    stop = whole.text[len(whole.text) // 2 :][:8]
    stopping = {"prompt": "My dog is", "sampling": {"stop": stop}}
    stopped, same = batchgen.generate([stopping, "The"], bundled, engine="continuous", max_new_tokens=20)
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert (stopped.finish_reason, same.output_ids) == ("stop", other.output_ids)


# Which models have slots.


def test_a_model_whose_attention_cannot_be_replaced_runs_by_reference(tiny_models: dict[str, Model]) -> None:
    lines: list[str] = []
    engine = make_engine(tiny_models["bloom"], say=lines.append)
    assert not isinstance(engine, ContinuousEngine)
    assert lines == ["using engine reference, which is slower: its attention cannot be replaced"]
    with pytest.raises(UsageError, match="--engine continuous does not run this: its attention cannot be replaced"):
        slots_of(tiny_models["bloom"])


@pytest.mark.parametrize(
    "config", [QWEN2, MistralConfig(num_key_value_heads=2, sliding_window=None, **SHAPE)], ids=["qwen2", "mistral"]
)
def test_a_window_that_is_off_is_none(checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    assert isinstance(slots_of(model_of(config, checkpoint)), ContinuousEngine)


def off_by_one(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Shift positions by one wherever a cache is used."""
    if kwargs.get("past_key_values") is not None:
        kwargs = {**kwargs, "position_ids": kwargs["position_ids"] + 1}
    return args, kwargs


def tripping(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("past_key_values") is not None:
        raise TypeError("no cache like this")


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (off_by_one, "in a trial, slots gave other logits than a plain forward pass"),
        (tripping, "in a trial, slots failed: TypeError: no cache like this"),
    ],
)
def test_a_model_whose_trial_fails_is_as_it_was(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, hook: Callable[..., Any], reason: str
) -> None:
    monkeypatch.setattr("batchgen.engines.trial.ladder.read_verdict", lambda model, engine: None)
    monkeypatch.setattr("batchgen.engines.trial.ladder.keep_verdict", lambda model, engine, verdict: None)
    model, lines = model_of(ARCHITECTURES["gpt2"], checkpoint, "eager"), []
    layers = [type(module) for module in model.network.modules()]
    model.network.register_forward_pre_hook(hook, with_kwargs=True)
    assert not isinstance(make_engine(model, say=lines.append), ContinuousEngine)
    assert lines[0] == f"using engine reference, which is slower: {reason}"
    assert model.network.config._attn_implementation == "eager"
    assert [type(module) for module in model.network.modules()] == layers
    with pytest.raises(ModelError, match="--engine continuous does not run tiny: in a trial, slots"):
        slots_of(model)


def test_a_second_engine_makes_tries_and_probes_nothing_again(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = slots_of(bundled).slot_model.model.network
    monkeypatch.setattr(network, "speed_up", lambda *args, **options: pytest.fail("packed again"))
    monkeypatch.setattr(network, "why_slots_fail", lambda *args: pytest.fail("tried again"))
    monkeypatch.setattr(probe, "_probe", lambda *args: pytest.fail("probed again"))
    assert slots_of(bundled).slot_model.model.network is first


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_engine_changes_nothing_of_a_model_that_it_was_lent(
    folders: dict[str, Path], tmp_path: Path, architecture: str
) -> None:
    model = open_model(str(folders[architecture]), device="cpu")
    before = dict(model.network.state_dict(keep_vars=True))
    kinds = [type(module) for module in model.network.modules()]
    attention = model.network.config._attn_implementation
    batchgen.generate(RAIN, model, engine="continuous", max_new_tokens=3)
    after = model.network.state_dict(keep_vars=True)
    assert {name: id(tensor) for name, tensor in before.items()} == {name: id(t) for name, t in after.items()}
    assert [type(module) for module in model.network.modules()] == kinds
    assert model.network.config._attn_implementation == attention
    assert not any(module._forward_pre_hooks for module in model.network.modules())
    model.network.save_pretrained(tmp_path)
    saved = open_model_weights(tmp_path)
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items() if name in saved)
    assert len(saved) >= len(before) - 1  # a tied output layer is stored once


def open_model_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_pages_go_with_their_engine_and_wait_for_no_garbage_collector(bundled: Model) -> None:
    engine = slots_of(bundled)
    list(drive(engine, [encoded(["My dog is"], bundled, max_new_tokens=2)]))
    pages = weakref.ref(engine.slot_model.cache.layers[0].keys)
    gc.disable()
    try:
        del engine
        assert pages() is None
    finally:
        gc.enable()


# Count forwards, and make them fail.


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Model]) -> Model:
    return tiny_models["gpt2"]


class Watched(SlotModel):
    """Records each forward's kind and shape; raises after those in `fails`, once their outputs are gone.

    The rows of a step are its slots, without filler rows.
    """

    def __init__(
        self,
        model: Model,
        fails: Callable[[str, int, int], bool] = lambda kind, rows, number: False,
        make_error: Callable[[], BaseException] = MemoryError,
    ) -> None:
        own, reason = slot_network(model)
        assert own is not None, reason
        super().__init__(own)
        self.loaded = model
        self.fails = fails
        self.make_error = make_error
        self.forwards: list[tuple[str, int, int]] = []
        self.lost: list[weakref.ref[torch.Tensor]] = []

    @property
    def kind(self) -> str:
        view = self.cache.pools[0].view
        return (
            "step"
            if isinstance(view, StepView)
            else "prefix"
            if isinstance(view, PrefillView) and view.computes
            else "prefill"
        )

    def _forward(self, batch: Batch, **options: bool) -> torch.Tensor:
        assert all(tensor() is None for tensor in self.lost), "the failed forward's tensors are alive"
        logits = super()._forward(batch, **options)
        view, (rows, columns) = self.cache.pools[0].view, batch.input_ids.shape
        rows = len(view.page) if isinstance(view, StepView) else rows
        self.forwards.append((self.kind, rows, columns))
        of_kind = sum(kind == self.kind for kind, *_ in self.forwards)
        if self.fails(self.kind, rows, of_kind):
            self.lost.append(weakref.ref(logits))
            raise self.make_error()
        return logits

    def shapes(self, kind: str) -> list[tuple[int, int]]:
        return [(rows, columns) for found, rows, columns in self.forwards if found == kind]


def engine_of(slot_model: Watched, num_rows: int | None = None, **options: Any) -> ContinuousEngine:
    limits = limits_for(slot_model.loaded, num_rows)
    return ContinuousEngine(slot_model, limits, sampler_of(slot_model.loaded), **options)


# What prompts have in common.

PREAMBLE = (
    "You are a kind old man who lives in a small house by the sea and likes to tell stories about it. "
    "In each of them there is a ship that comes home. "
)


def test_a_prefix_is_computed_once_and_changes_no_token(model: Model) -> None:
    prompts = [PREAMBLE + prompt for prompt in ragged_prompts(9, seed=3, longest=9)] + [PREAMBLE.strip(), *RAIN]
    plain = tokens_of(drive(slots_of(model, 4, share=False), [encoded(prompts, model, max_new_tokens=8)]))
    slot_model = Watched(model)
    rows = encoded(prompts, model, max_new_tokens=8)
    assert tokens_of(drive(engine_of(slot_model, 4), [rows])) == plain
    [(_, num_tokens)] = slot_model.shapes("prefix")
    assert num_tokens == PAGE
    assert max(columns for _, columns in slot_model.shapes("prefill")) <= max(
        10, *(row.num_prompt_tokens - num_tokens for row in rows[:10])
    )


def test_prompts_that_are_the_prefix_keep_their_tokens(model: Model) -> None:
    options = {"temperature": 1.0, "max_new_tokens": 6, "num_samples": 9}
    plain = batchgen.generate(PREAMBLE, model, engine="reference", **options)
    slot_model = Watched(model)
    shared = tokens_of(drive(engine_of(slot_model, 4), [encoded([PREAMBLE], model, **options)]))
    assert [shared["0", r.sample_index] == list(r.output_ids) for r in plain] == [True] * 9
    assert len(slot_model.shapes("prefix")) == 1
    assert {columns for _, columns in slot_model.shapes("prefill")} == {
        len(model.checkpoint.tokenizer(PREAMBLE)["input_ids"]) - PAGE
    }


def test_a_prefix_serves_grouped_heads(models: dict[str, Model]) -> None:
    prompts = [PREAMBLE + prompt for prompt in ragged_prompts(7, seed=4, longest=9)]
    plain = batchgen.generate(prompts, models["llama"], share_prefixes=False, max_new_tokens=8)
    assert output_ids(batchgen.generate(prompts, models["llama"], max_new_tokens=8)) == output_ids(plain)


def test_equal_greedy_prompts_are_computed_once_and_each_answered(model: Model) -> None:
    slot_model = Watched(model)
    rows = encoded([*["My dog is"] * 5, "The"], model, max_new_tokens=4)
    engine = engine_of(slot_model, 8)
    finished = list(drive(engine, [rows]))
    assert (
        slot_model.shapes("prefill") == [(2, rows[0].num_prompt_tokens)]
        or sum(n for n, _ in slot_model.shapes("prefill")) == 2
    )
    assert sorted(map(id, finished)) == sorted(map(id, rows))
    assert all(row.output_ids == rows[0].output_ids and row.finish_reason == "length" for row in rows[:5])
    assert rows[1].output_ids is not rows[0].output_ids
    assert engine.stats.new_tokens == 6 * 4


def test_equal_sampled_prompts_are_computed_one_by_one(model: Model) -> None:
    rows = encoded(["My dog is"] * 4, model, max_new_tokens=6, temperature=1.0)
    slot_model = Watched(model)
    list(drive(engine_of(slot_model, 8), [rows]))
    assert sum(n for n, _ in slot_model.shapes("prefill")) == 4
    assert len({tuple(row.output_ids) for row in rows}) > 1


# Windows.


def test_a_row_leaves_as_soon_as_it_is_finished(model: Model) -> None:
    long, short = encoded(["My dog is a", "The"], model, max_new_tokens=20)
    short.request = replace(short.request, sampling=SamplingParams(max_new_tokens=2))
    engine = slots_of(model, 2)
    finished = drive(engine, [[long, short]])
    assert next(finished) is short
    assert long.num_output_tokens == 2
    assert not engine.is_idle
    assert next(finished) is long
    assert engine.is_idle


def test_a_free_slot_is_taken_by_the_next_window(model: Model) -> None:
    long, *rest = encoded(ragged_prompts(7, seed=6), model, max_new_tokens=3)
    long.request = replace(long.request, sampling=SamplingParams(max_new_tokens=12))
    slot_model = Watched(model)
    finished = list(drive(engine_of(slot_model, 3), [[long, *rest[:2]], rest[2:4], rest[4:]]))
    assert finished[-1] is long
    assert len(slot_model.shapes("step")) == 11


def test_empty_windows_change_nothing(model: Model) -> None:
    rows = encoded(RAIN, model, max_new_tokens=5)
    windows = [[], rows[:2], [], [], [], rows[2:], []]
    wanted = tokens_of(drive(slots_of(model, 2), [encoded(RAIN, model, max_new_tokens=5)]))
    assert tokens_of(drive(slots_of(model, 2), windows)) == wanted
    assert list(drive(slots_of(model, 2), [])) == []


def test_windows_are_asked_for_only_when_slots_are_free(model: Model) -> None:
    slots, in_hand = 3, 0
    most = 0

    def windows() -> Iterator[list[Sequence]]:
        nonlocal in_hand, most
        for number in range(20):
            assert in_hand <= slots
            in_hand += 4
            most = max(most, in_hand)
            yield encoded(ragged_prompts(4, seed=number, longest=6), model, max_new_tokens=1 + number % 4)

    engine = slots_of(model, slots)
    for _ in drive(engine, windows()):
        in_hand -= 1
    assert in_hand == 0
    assert most <= slots + 4
    cache = engine.slot_model.cache
    [pool] = cache.pools
    assert pool.num_touched <= 2 * slots
    assert pool._free == list(range(pool.num_used))


def test_rows_that_have_failed_come_straight_out(model: Model) -> None:
    [good] = encoded(["My dog is"], model, max_new_tokens=3)
    bad = Sequence(Request(1, "1", ""), 0, [])
    bad.fail("the prompt is empty")
    assert list(drive(slots_of(model), [[good, bad]])) == [bad, good]
    assert bad.batch_index is None


def test_an_engine_that_is_closed_in_the_middle_holds_nothing(model: Model) -> None:
    engine = slots_of(model, 2)
    engine.add(encoded(ragged_prompts(12), model, max_new_tokens=50))
    for _ in range(3):
        engine.step()
    engine.close()
    assert engine.is_idle
    assert engine.slot_model.cache.held_bytes == 0


def test_a_step_is_one_forward(model: Model) -> None:
    slot_model = Watched(model)
    engine = engine_of(slot_model, 2)
    engine.add(encoded(ragged_prompts(5, seed=2), model, max_new_tokens=3))
    number = 0
    while not engine.is_idle:
        engine.step()
        number += 1
        assert len(slot_model.forwards) <= number


def test_rows_are_wanted_where_slots_are_free_and_nothing_waits(model: Model) -> None:
    engine = slots_of(model, 2)
    assert engine.wants_rows == 2
    engine.add(encoded(["My dog is", "The"], model, max_new_tokens=3))
    assert engine.wants_rows == 0
    engine.step()
    assert engine.wants_rows == 0  # the prefilled rows must make a step first


# Rows whose numbers break.


def poisoned(checkpoint: Checkpoint, word: str) -> Model:
    """A model in which one word gives NaN wherever it is read."""
    model = model_of(ARCHITECTURES["gpt2"], checkpoint)
    [token] = checkpoint.tokenizer(word)["input_ids"]
    embedding = model.network.get_input_embeddings()
    weight = embedding.weight.detach().clone()
    weight[token] = float("nan")
    embedding.weight = torch.nn.Parameter(weight, requires_grad=False)  # no longer the output layer's
    return model


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}], ids=str)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("engine", ["continuous", "reference"])
def test_a_row_that_breaks_fails_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, engine: str, batch_size: int, options: dict[str, float]
) -> None:
    monkeypatch.setattr(
        "batchgen.engines.trial.ladder.read_verdict", lambda model, name: TRUSTED[name.partition(",")[0]]
    )
    model = poisoned(checkpoint, " bench")
    prompts = ragged_prompts(9, seed=3)
    whole = batchgen.generate(prompts, model, engine=engine, batch_size=batch_size, max_new_tokens=6, **options)
    mixed = [*prompts[:4], "The bench is", *prompts[4:]]
    rows = [{"id": str(i if i < 4 else i - 1) if i != 4 else "bad", "prompt": p} for i, p in enumerate(mixed)]
    found = batchgen.generate(rows, model, engine=engine, batch_size=batch_size, max_new_tokens=6, **options)
    [bad] = [result for result in found if result.id == "bad"]
    assert (bad.finish_reason, bad.text) == ("error", "")
    assert "NaN" in (bad.error or "")
    assert [r.output_ids for r in found if r.id != "bad"] == [r.output_ids for r in whole]


TRUSTED = {"continuous": "right", "reference": "padded", "bits": "batch-invariant"}


# Running out of memory.

KINDS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
]
LENGTHS = [9, 3, 6, 12, 5, 9, 4, 9, 2, 7]


def ragged_rows(model: Model, share: bool = False) -> list[Sequence]:
    """Return rows of several lengths that end at several steps."""
    rows = encoded([(PREAMBLE if share else "") + prompt for prompt in ragged_prompts(10, seed=9, longest=30)], model)
    for row, length in zip(rows, LENGTHS, strict=True):
        sampling = SamplingParams(max_new_tokens=length, temperature=0.0 if length % 2 else 0.9)
        row.request = replace(row.request, sampling=sampling)
    return rows


@pytest.fixture(scope="module")
def undisturbed(model: Model) -> dict[bool, dict[object, list[int]]]:
    return {share: tokens_of(drive(slots_of(model, 6), [ragged_rows(model, share)])) for share in (False, True)}


FAILURES: dict[str, Callable[[str, int, int], bool]] = {
    "the first prefill": lambda kind, rows, number: kind == "prefill" and number == 1,
    "a later prefill": lambda kind, rows, number: kind == "prefill" and number == 3,
    "the first step": lambda kind, rows, number: kind == "step" and number == 1,
    "a later step": lambda kind, rows, number: kind == "step" and number == 4,
    "many steps": lambda kind, rows, number: kind == "step" and rows > 2,
    "every second forward": lambda kind, rows, number: rows > 1 and number % 2 == 0,
}


@pytest.mark.parametrize(
    ("where", "make_error"),
    [*((where, MemoryError) for where in FAILURES), *(("a later step", make_error) for make_error in KINDS)],
)
def test_tokens_are_those_of_a_run_that_never_ran_out(
    model: Model, undisturbed: dict[bool, Any], where: str, make_error: Callable[[], BaseException]
) -> None:
    slot_model, rows = Watched(model, FAILURES[where], make_error), ragged_rows(model)
    finished = list(drive(engine_of(slot_model, 6), [rows[:7], rows[7:]]))
    assert slot_model.lost
    assert sorted(map(id, finished)) == sorted(map(id, rows))
    assert tokens_of(finished) == undisturbed[False]


@pytest.mark.parametrize("where", ["prefix", "prefill", "step"])
def test_rows_behind_a_prefix_survive_too(model: Model, undisturbed: dict[bool, Any], where: str) -> None:
    slot_model = Watched(model, lambda kind, rows, number: kind == where and number == 1)
    rows = ragged_rows(model, share=True)
    assert tokens_of(drive(engine_of(slot_model, 6), [rows])) == undisturbed[True]
    assert slot_model.lost
    assert len(slot_model.shapes("prefix")) == (2 if where == "prefix" else 1)


class FailingSampler(Sampler):
    """Runs out of memory at its second call."""

    calls = 0

    def choose(self, logits: torch.Tensor, sequences: Any) -> list[int | None]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise MemoryError
        return super().choose(logits, sequences)

    fails_at = 2


@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_choice_that_runs_out_of_memory_is_made_again(model: Model, undisturbed: dict[bool, Any], call: int) -> None:
    sampler = FailingSampler(model.checkpoint.eos_token_ids, recompute=model.logits_alone)
    sampler.fails_at = call
    engine = ContinuousEngine(slots_of(model).slot_model, limits_for(model, 6), sampler)
    assert tokens_of(drive(engine, [ragged_rows(model)])) == undisturbed[False]
    assert engine.most_slots == 3


def test_half_of_the_slots_go_for_good(model: Model) -> None:
    slot_model = Watched(model, lambda kind, rows, number: kind == "step" and rows > 3)
    engine = engine_of(slot_model, 6)
    list(drive(engine, [ragged_rows(model)]))
    assert engine.most_slots == 3
    assert [rows for rows, _ in slot_model.shapes("step") if rows > 3] == [6]
    assert max(rows for rows, _ in slot_model.shapes("prefill")[-1:]) <= 3


def test_rows_that_wait_again_keep_their_tokens(model: Model) -> None:
    slot_model = Watched(model, lambda kind, rows, number: kind == "step" and number == 4)
    rows = encoded(ragged_prompts(4, seed=2, longest=8), model, max_new_tokens=8)
    engine = engine_of(slot_model, 4)
    list(drive(engine, [rows]))
    assert engine.stats.new_tokens == 4 * 8
    assert len(slot_model.shapes("prefill")) >= 2
    assert max(columns for _, columns in slot_model.shapes("prefill")) <= 8  # their tokens are fed one by one
    assert len(slot_model.shapes("step")) > 8 + 3


def test_a_row_that_fits_nowhere_fails_without_tokens(model: Model) -> None:
    slot_model = Watched(model, lambda kind, rows, number: kind == "step" and number >= 3)
    [row] = encoded(["My dog is"], model, max_new_tokens=9)
    lines: list[str] = []
    engine = engine_of(slot_model, 4, backoff=Backoff(limits_for(model, 4), say=lines.append))
    assert list(drive(engine, [[row]])) == [row]
    assert row.finish_reason == "error"
    assert (row.error or "").startswith("out of memory: this row alone (3 prompt + 9 new tokens) needs about ")
    assert (row.output_ids, row.batch_index, row.padded_length) == ([], None, None)
    assert (engine.stats.new_tokens, engine.is_idle, len(lines)) == (0, True, 1)


def test_a_row_that_cannot_be_prefilled_fails_alone(model: Model, undisturbed: dict[bool, Any]) -> None:
    rows = ragged_rows(model)
    longest = max(row.num_prompt_tokens for row in rows)

    class Narrow(Watched):
        def _forward(self, batch: Batch) -> torch.Tensor:
            if batch.input_ids.shape[1] >= longest:
                raise MemoryError
            return super()._forward(batch)

    finished = tokens_of(drive(engine_of(Narrow(model), 6), [rows]))
    assert [row.num_prompt_tokens for row in rows if row.finish_reason == "error"] == [longest]
    assert {**finished, **{(r.request.id, 0): [] for r in rows if r.error}} == finished
    assert {id: ids for id, ids in finished.items() if ids} == {
        id: ids for id, ids in undisturbed[False].items() if finished[id]
    }


def test_twins_of_a_row_that_fits_nowhere_fail_with_it(model: Model) -> None:
    slot_model = Watched(model, lambda kind, rows, number: True)
    rows = encoded(["My dog is"] * 3, model, max_new_tokens=9)
    assert list(drive(engine_of(slot_model, 4), [rows])) == rows
    assert {row.error for row in rows} == {rows[0].error}
    assert rows[0].error is not None


def test_a_cache_that_cannot_grow_fails_no_row_that_runs(
    monkeypatch: pytest.MonkeyPatch, model: Model, undisturbed: dict[bool, Any]
) -> None:
    slot_model = Watched(model)
    failed: list[int] = []
    grow = PagePool.grow

    def grow_thrice(pool: PagePool, num_pages: int) -> None:
        if pool.num_used and num_pages > pool.num_pages and len(failed) < 2:
            failed.append(num_pages)
            raise MemoryError
        grow(pool, num_pages)

    monkeypatch.setattr(PagePool, "grow", grow_thrice)
    engine, rows = engine_of(slot_model, 6), ragged_rows(model)
    assert tokens_of(drive(engine, [rows[:1], rows[1:]])) == undisturbed[False]
    assert failed
    assert not any(row.error for row in rows)


def test_prefills_stay_small_where_rows_wait_again_in_another_order(tiny_models: dict[str, Model]) -> None:
    slot_model = Watched(tiny_models["llama"], lambda kind, rows, number: kind == "step" and rows == 60)
    source = random.Random(0)
    rows = [
        Sequence(Request(i, i, "", SamplingParams(max_new_tokens=6)), 0, source.choices(range(EOS), k=length))
        for i, length in enumerate([*[1] * 40, *[100] * 20])
    ]
    list(drive(engine_of(slot_model, 60), [rows[:30], rows[30:40], rows[40:]]))
    assert slot_model.lost
    assert max(rows * columns for rows, columns in slot_model.shapes("prefill")) <= PREFILL_TOKENS


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, AttributeError, AssertionError, OverflowError])
def test_other_errors_are_one_line(model: Model, kind: type[Exception]) -> None:
    slot_model = Watched(model, lambda *_: True, lambda: kind("shape mismatch\nmore"))
    with pytest.raises(ModelError, match=r"^the model failed with 0 rows in its slots .*shape mismatch$"):
        list(drive(engine_of(slot_model, 2), [encoded(RAIN, model)]))


def test_rows_join_only_where_memory_has_room(model: Model) -> None:
    rows = encoded(["My dog is"] * 6, model, max_new_tokens=4, temperature=1.0)
    slot_model, limits = Watched(model), limits_for(model)
    two = SlotMemory(limits.memory.footprint).of_rows([(3, row.sampling) for row in rows[:2]]).total

    def budget() -> int:
        """The memory for two rows, minus what the cache has taken."""
        return two - slot_model.cache.held_bytes

    engine = ContinuousEngine(slot_model, limits, sampler_of(model), backoff=Backoff(limits, budget=budget))
    assert len(list(drive(engine, [rows]))) == 6
    assert [n for n, _ in slot_model.shapes("step")] == [2] * 9


def test_a_single_row_is_tried_where_the_estimate_has_no_room(model: Model) -> None:
    rows, limits = encoded(RAIN, model, max_new_tokens=4), limits_for(model)
    slot_model = Watched(model)
    engine = ContinuousEngine(slot_model, limits, sampler_of(model), backoff=Backoff(limits, budget=lambda: 0))
    assert {row.finish_reason for row in drive(engine, [rows])} == {"length"}
    assert {n for n, _ in slot_model.shapes("step")} == {1}


def test_a_row_that_would_get_the_process_killed_is_not_tried(model: Model) -> None:
    rows, limits = encoded(RAIN, model, max_new_tokens=4), limits_for(model)
    slot_model = Watched(model)
    engine = ContinuousEngine(
        slot_model, limits, sampler_of(model), backoff=Backoff(limits, budget=lambda: 0, wall=lambda: 0)
    )
    assert {row.finish_reason for row in drive(engine, [rows])} == {"error"}
    assert slot_model.forwards == []
