"""The engine `reference` against transformers' own `generate` on unpadded single prompts."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

import batchgen
import batchgen.model
from batchgen import Model, open_model
from batchgen.engines import Engine, finish_all, make_engine
from batchgen.engines.sampling import sampler as sampler_module
from batchgen.errors import BatchgenError
from batchgen.model.find import BUNDLED_FOLDER
from batchgen.model.padding import encode
from batchgen.records import EngineOptions, Request, SamplingParams, Sequence
from tests.support.models import ARCHITECTURES, decide_alone, generate_alone
from tests.support.results import output_ids
from tests.support.rows import RAIN, ragged_prompts

generate = partial(batchgen.generate, engine="reference")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_equal_unpadded_generate(tiny_models: dict[str, Model], architecture: str) -> None:
    model = tiny_models[architecture]
    prompts = ragged_prompts(9)
    alone = [generate_alone(model, prompt, max_new_tokens=12) for prompt in prompts]
    for batch_size in (1, 2, 7, 32):
        assert output_ids(generate(prompts, model, batch_size=batch_size, max_new_tokens=12)) == alone


def test_greedy_tokens_of_the_bundled_model_equal_unpadded_generate(bundled: Model) -> None:
    prompts = RAIN + ragged_prompts(6, seed=1)
    alone = [generate_alone(bundled, prompt, max_new_tokens=12) for prompt in prompts]
    assert output_ids(generate(prompts, bundled, max_new_tokens=12)) == alone


def test_near_ties_fall_as_they_do_alone() -> None:
    """Two words with nearly the same embedding tie to the last bits: only the unpadded forward decides who wins."""
    model = batchgen.open_model("bundled", device="cpu")
    weights = model.network.get_input_embeddings().weight
    with torch.no_grad():
        weights[6290] = weights[845] + 1e-6
    prompts = RAIN + ragged_prompts(20, seed=2)[4:18]
    alone = [decide_alone(model, prompt, max_new_tokens=8) for prompt in prompts]
    assert sum(not {845, 6290}.isdisjoint(ids) for ids in alone) >= 4
    assert output_ids(generate(prompts, model, max_new_tokens=8)) == alone


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 12},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
    ],
    ids=str,
)
def test_penalties_count_real_tokens_only(tiny_models: dict[str, Model], options: dict[str, float]) -> None:
    model = tiny_models["gpt2"]
    prompts = ragged_prompts(9, seed=3)
    alone = [generate_alone(model, prompt, max_new_tokens=16, **options) for prompt in prompts]
    assert output_ids(generate(prompts, model, max_new_tokens=16, **options)) == alone


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}], ids=str)
def test_beams_equal_unpadded_generate(bundled: Model, options: dict[str, float]) -> None:
    prompts = RAIN + ragged_prompts(2, seed=4, longest=12)
    alone = [generate_alone(bundled, prompt, max_new_tokens=8, num_beams=3, **options) for prompt in prompts]
    assert output_ids(generate(prompts, bundled, max_new_tokens=8, num_beams=3, **options)) == alone


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 1.3, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_samples_do_not_depend_on_the_batch(bundled: Model, options: dict[str, float]) -> None:
    prompts = RAIN + ragged_prompts(3, seed=5, longest=20)
    runs = [
        output_ids(generate(prompts, bundled, batch_size=size, max_new_tokens=6, seed=7, **options)) for size in (1, 4)
    ]
    assert runs[0] == runs[1]


def test_samples_follow_the_id_not_the_order(bundled: Model) -> None:
    rows = [{"id": f"row-{i}", "prompt": prompt} for i, prompt in enumerate(ragged_prompts(10, seed=6, longest=12))]
    shuffled = random.Random(0).sample(rows, len(rows))
    options = {"temperature": 1.0, "max_new_tokens": 8}
    by_id = {r.id: r.text for r in generate(rows, bundled, **options)}
    assert {r.id: r.text for r in generate(shuffled, bundled, **options)} == by_id


def test_seeds_and_sample_indices_change_the_draws(bundled: Model) -> None:
    texts = {
        result.text
        for seed in (0, 1)
        for result in generate("My dog is", bundled, temperature=1.0, num_samples=3, seed=seed, max_new_tokens=12)
    }
    assert len(texts) == 6


def test_a_row_stops_at_eos_and_counts_it(bundled: Model) -> None:
    first = generate("My dog is", bundled, max_new_tokens=5)[0]
    eos = first.output_ids[1]
    checkpoint = batchgen.model.Checkpoint(
        "other", bundled.checkpoint.folder, bundled.checkpoint.config, bundled.checkpoint.tokenizer, frozenset({eos})
    )
    model = Model(checkpoint, bundled.network, bundled.device, bundled.dtype)
    short, long = generate(["My dog is", "It will rain in the"], model, max_new_tokens=20)
    assert (short.finish_reason, short.num_output_tokens, short.output_ids[-1]) == ("stop", 2, eos)
    assert long.num_output_tokens > 2


def test_a_stop_string_ends_the_row_and_is_not_included(bundled: Model) -> None:
    whole = generate("My dog is", bundled, max_new_tokens=40)[0]
    stop = whole.text[len(whole.text) // 2 :][:8]
    stopped = generate("My dog is", bundled, max_new_tokens=40, stop=(stop, "xyz"))[0]
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.num_output_tokens < whole.num_output_tokens
    assert list(stopped.output_ids) == list(whole.output_ids[: stopped.num_output_tokens])


def test_min_new_tokens_holds_back_eos(tiny_models: dict[str, Model]) -> None:
    model = tiny_models["llama"]
    likeliest = {generate_alone(model, prompt, max_new_tokens=1)[0] for prompt in RAIN}
    checkpoint = batchgen.model.Checkpoint(
        "m", model.checkpoint.folder, model.checkpoint.config, model.checkpoint.tokenizer, frozenset(likeliest)
    )
    results = generate(
        RAIN, Model(checkpoint, model.network, model.device, model.dtype), min_new_tokens=3, max_new_tokens=6
    )
    assert all(not likeliest & set(r.output_ids[:3]) for r in results)


def engine_of(model: Model, num_rows: int | None = None) -> Engine:
    return make_engine(model, EngineOptions("reference", batch_size=num_rows))


def test_only_rows_of_one_length_share_a_batch(bundled: Model) -> None:
    requests = [
        Request(i, str(i), prompt, SamplingParams(max_new_tokens=n))
        for i, (prompt, n) in enumerate(zip(RAIN, (3, 9, 3), strict=True))
    ]
    engine = engine_of(bundled, 3)
    finished = list(finish_all(engine, encode(requests, bundled.checkpoint.tokenizer)))
    assert sorted(s.num_output_tokens for s in finished) == [3, 3, 9]
    assert engine.stats.batches == 2


def test_greedy_and_sampled_rows_share_a_batch(bundled: Model) -> None:
    params = [SamplingParams(max_new_tokens=6), SamplingParams(max_new_tokens=6, temperature=1.0)]
    requests = [Request(i, str(i), "My dog is", p) for i, p in enumerate(params)]
    sequences = encode(requests, bundled.checkpoint.tokenizer)
    together = {s.request.index: s.output_ids for s in finish_all(engine_of(bundled, 2), sequences)}
    alone = generate("My dog is", bundled, max_new_tokens=6)[0]
    sampled = generate([{"id": "1", "prompt": "My dog is"}], bundled, max_new_tokens=6, temperature=1.0)[0]
    assert together == {0: list(alone.output_ids), 1: list(sampled.output_ids)}


def test_each_step_gives_a_token_to_rows_that_are_not_finished(bundled: Model, said: Callable[[str, int], str]) -> None:
    params = [SamplingParams(max_new_tokens=3, stop=stop) for stop in (said("My dog is", 1).strip(), ())]
    requests = [Request(i, str(i), "My dog is", p) for i, p in enumerate(params)]
    engine = engine_of(bundled)
    engine.add(encode(requests, bundled.checkpoint.tokenizer))
    made, out = [], []
    while not engine.is_idle:
        before = engine.stats.new_tokens
        out.append(len(engine.step()))
        made.append(engine.stats.new_tokens - before)
    assert (made, out) == ([2, 1, 1], [1, 0, 1])


def test_a_step_is_one_forward(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards: list[torch.Size] = []
    forward = bundled.network.forward

    def counting(*args: object, **kwargs: object) -> object:
        ids = kwargs["input_ids"]
        assert isinstance(ids, torch.Tensor)
        forwards.append(ids.shape)
        return forward(*args, **kwargs)

    engine = make_engine(bundled, EngineOptions("reference", exact=False))
    engine.add(encode([Request(0, "0", "My dog is", SamplingParams(max_new_tokens=4))], bundled.checkpoint.tokenizer))
    monkeypatch.setattr(bundled.network, "forward", counting)
    for step in range(1, 5):
        engine.step()
        assert len(forwards) == step


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_engine_that_is_closed_in_the_middle_leaves_nothing_behind(bundled: Model, num_beams: int) -> None:
    params = SamplingParams(max_new_tokens=50, num_beams=num_beams)
    engine = engine_of(bundled)
    engine.add(encode([Request(0, "0", "My dog is", params)], bundled.checkpoint.tokenizer))
    before = threading.active_count()
    engine.step()
    assert threading.active_count() == before + 1
    engine.close()
    assert engine.is_idle
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread() and thread.name.startswith("generate"):
            thread.join()
    assert threading.active_count() == before


def test_rows_of_a_model_that_gives_nan_are_error_records(folders: dict[str, Path]) -> None:
    model = batchgen.open_model(str(folders["gpt_neox"]), device="cpu")
    generate(RAIN, model, engine="reference", max_new_tokens=1)  # it is tried before it is changed
    with torch.no_grad():
        model.network.get_output_embeddings().weight[0] = float("nan")
    results = generate(RAIN, model, engine="reference")
    assert all(r.finish_reason == "error" and "NaN in float32" in (r.error or "") for r in results)


def test_near_ties_are_not_decided_again_in_sixteen_bits(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = batchgen.open_model(str(folders["gpt2"]), device="cpu", dtype="bfloat16")
    monkeypatch.setattr(sampler_module, "GREEDY_MARGIN", 1e9)  # every step is a near tie
    monkeypatch.setattr(Model, "logits_alone", lambda model, sequence: pytest.fail("decided again"))
    generate(RAIN, model, max_new_tokens=3)


def test_an_unknown_engine_is_refused(bundled: Model) -> None:
    with pytest.raises(BatchgenError, match="engine warp is not one of"):
        batchgen.generate(RAIN, bundled, engine="warp")


def test_weights_that_no_row_has_read_yet_do_not_count_as_memory_of_rows(tmp_path: Path) -> None:
    """They stay in their file until they are read; the trial reads them, but only at a model's first start."""
    network = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=256, n_head=4))
    network.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_FOLDER / name, tmp_path)
    for is_first in (True, False):
        model = open_model(str(tmp_path), device="cpu", dtype="float32")
        engine = make_engine(model, EngineOptions("reference"))
        prompt = Request(0, "0", "a dog", SamplingParams(max_new_tokens=2))
        list(finish_all(engine, [Sequence(prompt, 0, [1, 2, 3])]))
        assert is_first or (engine.stats.measured_bytes or 0) < network.num_parameters() * 4 // 2
