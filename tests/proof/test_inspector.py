"""Masks and attention as `inspect` shows them, against what transformers' own eager attention computes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from batchgen import Model
from batchgen.engines import make_engine
from batchgen.errors import ModelError, UsageError
from batchgen.model import Checkpoint
from batchgen.proof.inspector import Heads, Inspection, inspect_batch, inspect_masks, parse_heads
from batchgen.proof.inspector.attention import inspect_attention
from batchgen.proof.inspector.sides import compare_sides
from batchgen.proof.inspector.watch import Seen, watch_attention
from batchgen.proof.inspector.whole import fold_left, inspect_all
from batchgen.records import Batch, EngineOptions
from tests.support.command import failure, invoke
from tests.support.models import ARCHITECTURES, EOS, generate_alone
from tests.support.rows import RAIN, requests_of


def inspection_of(model: Model, prompts: list[str] = RAIN, **options: Any) -> Inspection:
    return inspect_batch(model.checkpoint, requests_of(prompts, max_new_tokens=8), **options)


def batch_of(model: Model, prompts: list[str] = RAIN) -> Batch:
    batch = inspection_of(model, prompts).batch
    assert batch is not None
    return batch


# The batch.


def test_a_genuine_eos_is_real_and_a_pad_is_not(bundled: Model) -> None:
    inspection = inspection_of(bundled, ["<|endoftext|>a", "My dog is here"], parse_special=True)
    row = inspection.rows[0]
    assert row.input_ids[:3] == [EOS, EOS, EOS]
    assert (row.attention_mask, row.labels[:3]) == ([0, 0, 1, 1], ["pad", "pad", "<|endoftext|>"])


def test_rows_too_long_for_a_model_that_will_run_them_fail(bundled: Model) -> None:
    prompts = ["My dog is", "rain " * 600]
    assert len(inspection_of(bundled, prompts).rows) == 2
    assert len(inspection_of(bundled, prompts, n_positions=512).failed) == 1


# The mask.


def test_a_query_sees_the_real_keys_up_to_itself(checkpoint: Checkpoint, bundled: Model) -> None:
    batch = batch_of(bundled)
    masks = inspect_masks(checkpoint.config, batch)
    for row, mask in enumerate(batch.attention_mask.tolist()):
        for query, keys in enumerate(masks.visible[row]):
            assert keys == [bool(mask[key]) and key <= query for key in range(len(mask))]
    assert [masks.blind_queries(row) for row in range(3)] == [[0, 1, 2], [], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_mask_is_the_one_that_the_model_adds(tiny_models: dict[str, Model], architecture: str) -> None:
    model = tiny_models[architecture]
    batch = batch_of(model)
    masks = inspect_masks(model.checkpoint.config, batch)
    added = torch.tensor(masks.visible).logical_not() * masks.least
    seen: list[Seen] = []
    watch_attention(model, batch, seen.append)
    assert all(torch.equal(layer.mask[:, 0], added) for layer in seen)


def test_least_number_and_infinity_part_where_nothing_is_seen(checkpoint: Checkpoint, bundled: Model) -> None:
    masks = inspect_masks(checkpoint.config, batch_of(bundled))
    assert masks.least == torch.finfo(torch.float32).min
    assert masks.fully_masked.weight_with_least == 1 / 8
    assert masks.fully_masked.weight_with_infinity is None


def test_infinity_would_reach_the_tokens(bundled: Model) -> None:
    """As the legend of the mask view says: 0 * NaN is NaN, one layer further."""
    batch = batch_of(bundled)
    visible = torch.tensor(inspect_masks(bundled.checkpoint.config, batch).visible)
    mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)[:, None]  # [B, 1, T, T]
    network = bundled.on_same_weights("eager").network
    with torch.inference_mode():
        logits = network(batch.input_ids, attention_mask=mask, position_ids=batch.position_ids).logits
    assert logits[:, -1].isnan().any(-1).tolist() == [True, False, True]  # all except the row without pads


# Attention.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_those_of_the_models_own_eager_attention(tiny_models: dict[str, Model], architecture: str) -> None:
    model = tiny_models[architecture]
    batch = batch_of(model)
    seen: list[Seen] = []
    watch_attention(model, batch, seen.append)
    inputs = model.inputs(batch.input_ids, batch.attention_mask, batch.position_ids)
    network = model.on_same_weights("eager").network
    with torch.inference_mode():
        attentions = network(**inputs, output_attentions=True).attentions
    assert len(seen) == len(attentions) == 2
    for layer, weights in zip(seen, attentions, strict=True):
        assert torch.allclose(layer.weights, weights, atol=1e-6)
        assert torch.allclose((layer.scores + layer.mask).softmax(-1), weights, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pads_get_exactly_nothing_and_would_get_something(tiny_models: dict[str, Model], architecture: str) -> None:
    model = tiny_models[architecture]
    for heads in (Heads(1, 2), Heads(0, None), Heads(None, None)):
        for row in inspect_attention(model, inspection_of(model), heads):
            assert row.pad_weight == 0
            assert (row.pad_weight_without_mask > 0) == (0 in row.attention_mask)
            assert sum(row.weights) == pytest.approx(1)
            assert sum(row.weights_without_mask) == pytest.approx(1)


def test_logits_are_those_of_a_forward(tiny_models: dict[str, Model]) -> None:
    model = tiny_models["llama"]
    batch = batch_of(model)
    logits = watch_attention(model, batch, lambda seen: None)
    with torch.inference_mode():
        alone = torch.stack([model.logits_alone(sequence) for sequence in batch.sequences])
    assert torch.allclose(logits, alone, atol=1e-3)


def test_a_mean_is_the_mean_of_the_heads_and_has_no_scores(bundled: Model) -> None:
    inspection = inspection_of(bundled)
    mean = inspect_attention(bundled, inspection, parse_heads("1:mean"))[0]
    heads = [inspect_attention(bundled, inspection, Heads(1, head))[0].weights for head in range(6)]
    assert mean.scores is None
    assert mean.weights == pytest.approx([sum(column) / 6 for column in zip(*heads, strict=True)])


def test_another_query_sees_nothing_behind_it(bundled: Model) -> None:
    row = inspect_attention(bundled, inspection_of(bundled), Heads(0, 0), query=-2)[0]
    assert (row.query, row.weights[-1], row.weights_without_mask[-1]) == (6, 0, 0)


def test_a_pads_own_query_weighs_every_column_alike(bundled: Model) -> None:
    row = inspect_attention(bundled, inspection_of(bundled), Heads(0, 0), query=0)[2]
    assert row.is_pad
    assert row.weights == [1 / 8] * 8


def test_the_model_keeps_its_own_attention(tiny_models: dict[str, Model]) -> None:
    model = tiny_models["gpt2"]
    before = model.network.config._attn_implementation
    make_engine(model, EngineOptions("continuous"))
    watch_attention(model, batch_of(model), lambda seen: None)
    assert model.network.config._attn_implementation == before != "eager"


def test_an_attention_that_adds_no_mask_is_refused(bundled: Model) -> None:
    class Opaque(torch.nn.Module):
        config = SimpleNamespace(_attn_implementation="own")

        def set_attn_implementation(self, name: str) -> None: ...

        def forward(self, **inputs: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(3, 1, 8))

    with pytest.raises(ModelError, match="cannot be shown: it adds no mask"):
        watch_attention(replace(bundled, network=Opaque()), batch_of(bundled), lambda seen: None)


@pytest.mark.parametrize("text", ["", "0:", ":0", "0", "mean", "mean:3", "0:mean"])
def test_means_are_named_or_left_out(text: str) -> None:
    if text in ("", ":0"):
        with pytest.raises(UsageError, match="give LAYER:HEAD"):
            parse_heads(text)
    else:
        heads = parse_heads(text)
        assert heads.layer == (0 if text.startswith("0") else None)
        assert heads.head == (3 if text.endswith("3") else None)


@pytest.mark.parametrize(
    ("heads", "query", "reason"),
    [
        (Heads(6, 0), -1, "there is no layer 6; the model has layers 0 to 5"),
        (Heads(0, 6), -1, "there is no head 6"),
        (Heads(0, 0), 8, "--query 8: the batch has columns 0 to 7"),
        (Heads(0, 0), -9, "--query -9"),
    ],
)
def test_what_is_not_there_is_a_usage_error(bundled: Model, heads: Heads, query: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        inspect_attention(bundled, inspection_of(bundled), heads, query)


# All of it, for the page.


def test_folding_columns_leaves_the_weights_of_the_others(bundled: Model) -> None:
    inspection = inspection_of(bundled)
    whole, _ = inspect_all(bundled, inspection)
    folded, _ = inspect_all(bundled, inspection, most_columns=4)
    assert (whole.first_column, whole.num_folded, folded.first_column, folded.num_folded) == (0, 0, 4, 2)
    for full, part in zip(whole.scores, folded.scores, strict=True):
        weights, kept = full.softmax(-1)[:, :, 4:], part.softmax(-1)
        assert torch.allclose(kept[..., 2:], weights[..., 4:], atol=1e-6)
        assert torch.allclose(kept[..., :2].sum(-1), weights[..., :4].sum(-1), atol=1e-6)


def test_what_is_folded_is_pads_and_real_tokens_apart() -> None:
    scores = torch.zeros(1, 1, 4, 4)
    is_pad = torch.tensor([[True, False, False, False]])
    weights = fold_left(scores, is_pad, 3).softmax(-1)  # [1, 1, 1, 3]
    assert weights.flatten().tolist() == pytest.approx([0.25, 0.5, 0.25])


def test_next_tokens_are_those_of_the_row_alone(bundled: Model) -> None:
    inspection = inspection_of(bundled)
    assert inspection.batch is not None
    _, predictions = inspect_all(bundled, inspection)
    for sequence, prediction in zip(inspection.batch.sequences, predictions, strict=True):
        with torch.inference_mode():
            best = bundled.logits_alone(sequence).softmax(-1).max(-1)
        assert prediction.with_mask[0].token_id == int(best.indices)
        assert prediction.with_mask[0].probability == pytest.approx(float(best.values), abs=1e-5)
    moved = [abs(p.with_mask[0].probability - p.without_mask[0].probability) > 1e-4 for p in predictions]
    assert moved == [True, False, True]


# Sides.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_is_as_alone_and_right_reads_a_pad(tiny_models: dict[str, Model], architecture: str) -> None:
    model = tiny_models[architecture]
    tokenizer = model.checkpoint.tokenizer
    sides = compare_sides(model, inspection_of(model), max_new_tokens=6)
    for prompt, row in zip(RAIN, sides, strict=True):
        alone = generate_alone(model, prompt, max_new_tokens=6)
        assert row.left.text == tokenizer.decode(alone, skip_special_tokens=True)
        assert row.left.next_token == row.own_next_token == tokenizer.decode(alone[:1])
        assert (row.left.is_pad, row.left.column, row.right.column) == (False, 7, 7)
    assert [row.right.is_pad for row in sides] == [True, False, True]
    assert [row.own_column for row in sides] == [4, 7, 2]
    assert sides[1].right == sides[1].left


def test_right_padding_gives_other_text(bundled: Model) -> None:
    sides = compare_sides(bundled, inspection_of(bundled), max_new_tokens=6)
    assert [row.right.text == row.left.text for row in sides] == [False, True, False]


# The command.


def look(*options: object, prompts: list[str] = RAIN) -> Any:
    result = invoke("inspect", *(part for prompt in prompts for part in ("-p", prompt)), "--model", "bundled", *options)
    assert result.exit_code == 0, result.stderr
    return result


def test_a_wide_batch_folds_and_its_pads_are_one_line() -> None:
    lines = look(prompts=["rain " * 40, "My dog is"]).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    row = lines.index(next(line for line in lines if line.startswith("row 1")))
    assert re.fullmatch(r"columns 0-\d+ +pads", lines[row + 1].rstrip())
    assert re.fullmatch(r"columns \d+-\d+", lines[row + 2].rstrip())
    assert lines[row + 3].split()[-3:] == ["My", "·dog", "·is"]


def test_a_row_says_how_many_genuine_eos_it_has() -> None:
    assert (
        "0 pads + 2 tokens (including 1 genuine eos) = 2 columns"
        in look("--parse-special", prompts=["<|endoftext|>a"]).stdout
    )


def test_the_mask_is_drawn_in_half_blocks() -> None:
    lines = look("--mask").stdout.splitlines()
    start = lines.index("row 2: queries down, two per line; keys across")
    assert [line.strip() for line in lines[start + 5 : start + 11]] == [
        "attention_mask   00000111",
        "┌────────┐",
        "pad ▀│        │▄ pad",
        "pad ▀│        │▄ pad",
        "pad ▀│     ▄  │▄ My",
        "·dog ▀│     ██▄│▄ ·is",
    ]
    assert "with -inf their weights are NaN (0/0)" in " ".join(" ".join(lines).split())


def test_a_wide_mask_folds() -> None:
    result = invoke("inspect", "-p", "rain " * 70, "-p", "My dog", "--model", "bundled", "--mask")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "row 1: queries down, two per line; keys across; 61 of 69 pads not shown" in result.stdout


def test_attention_says_what_pads_get_and_would_get() -> None:
    lines = look("--attention", "0:0").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    shares = [line for line in lines if line.startswith("on pads: exactly 0; without the mask ")]
    assert len(shares) == 2
    assert all(line.endswith("%") for line in shares)


def test_views_as_json() -> None:
    shown = json.loads(look("--json", "--mask", "--attention", "0:0", "--compare-sides").stdout)
    assert list(shown) == ["model", "pad_token_id", "rows", "mask", "attention", "sides"]
    mask = torch.tensor(shown["mask"]["added_to_scores"])
    row = shown["attention"]["rows"][2]
    masked = torch.tensor(row["scores"]) + mask[2, 7]
    assert torch.allclose(masked.softmax(-1), torch.tensor(row["weights"]), atol=1e-6)
    assert (row["pad_weight"], shown["sides"][2]["right"]["is_pad"]) == (0, True)


def test_drawings_go_to_files_that_load_nothing(tmp_path: Path) -> None:
    result = look("--mask", "--svg", tmp_path / "mask.svg", "--html", tmp_path / "page.html")
    assert result.stdout == ""
    svg = (tmp_path / "mask.svg").read_text()
    assert svg.startswith("<svg")
    assert "queries" in svg
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", svg)
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_a_page_that_exists_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("precious")
    assert "exists: add --overwrite" in failure(invoke("inspect", "-p", "x", "--html", page), 1)
    assert page.read_text() == "precious"


def test_a_page_of_nothing_is_an_error(tmp_path: Path) -> None:
    result = invoke("inspect", "-p", "", "--html", tmp_path / "page.html", "--model", "bundled")
    assert result.exit_code == 1
    assert "there are no rows to show" in result.stderr
