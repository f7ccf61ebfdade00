"""The recipe of the bundled model: its parts, and all of it for a minute on a made-up corpus."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import train_bundled
from corpus import EOS, clean, grams, read_extra, read_part, window_starts
from evaluation import repeated_share
from losses import Sampler, full_loss, sampled_loss
from muon import Muon, orthogonalize_all, parts
from recipe import Recipe, Unrepeating
from tokenizers import Tokenizer
from trainer import Trainer
from unlikelihood import beginnings, continue_greedily, repeats, unlikelihood

import batchgen
from batchgen.model.find import BUNDLED_FOLDER
from tests.support.processes import PATIENCE_S

TOOL = Path(__file__).parent.parent / "tools" / "train_bundled.py"
WORDS = re.findall(r"\w+", "the a king queen dog cat went saw said to and but home wood sea star small old one day")
TINY = Recipe(
    n_layer=2, n_head=2, n_embd=16, n_positions=64, window=16, batch_tokens=128, num_frequent=64, num_random=32
)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))


def made_up(source: random.Random, num_words: int) -> str:
    return " ".join(source.choices(WORDS, k=num_words)).capitalize() + "."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("corpus"), random.Random(0)
    separator = "\n<|endoftext|>\n"
    stories = separator.join(made_up(source, 300) for _ in range(60))
    books = separator.join(f"# A book\n\n{made_up(source, 9000)}\n\n## II\n\n{made_up(source, 9000)}" for _ in range(2))
    (folder / "stories.txt").write_text(stories)
    (folder / "books.txt").write_text(books)
    return folder


# Text and its held-out part.


def test_a_book_loses_its_headings_and_hard_wraps_and_a_story_keeps_its_lines() -> None:
    assert clean("# T\n\nOne\ntwo.\n\n## II\n\n“Three.”\n") == 'One two.\n"Three."'
    assert clean("One.\nIt’s two.") == "One.\nIt's two."


def test_the_end_of_a_book_and_every_fortieth_story_are_held_out(corpus: Path, bpe: Tokenizer) -> None:
    books, stories = (read_part(corpus / name, bpe) for name in ("books.txt", "stories.txt"))
    assert len(books.held_out) / (len(books.train) + len(books.held_out)) == pytest.approx(0.02, rel=0.01)
    assert [np.sum(part == EOS) for part in (stories.train, stories.held_out)] == [58, 2]


def test_an_extra_document_that_repeats_held_out_text_is_dropped(tmp_path: Path, bpe: Tokenizer) -> None:
    held_out, other = (made_up(random.Random(seed), 200) for seed in (1, 2))
    (tmp_path / "extra.txt").write_text(f"{held_out}\n<|endoftext|>\n{other}")
    known = np.array(bpe.encode(held_out).ids)
    extra = read_extra(tmp_path / "extra.txt", bpe, [known])
    assert bpe.decode(extra.train[:-1].tolist()) == other
    assert len(extra.held_out) == 0


def test_equal_runs_of_tokens_have_equal_hashes() -> None:
    ids = np.array([*range(20), *range(20)], dtype=np.uint16)
    assert grams(ids)[0] == grams(ids)[20]
    assert len(np.unique(grams(ids))) == 20


def test_a_pass_takes_each_window_once() -> None:
    starts = np.concatenate([window_starts(1_000, 10, seed=0, turn=turn, count=9) for turn in range(11)])
    assert len(np.unique(starts)) == 99
    assert np.unique(starts % 10).size == 1
    assert 0 <= starts.min() <= starts.max() <= 1_000 - 11


# Losses.


def test_the_loss_in_chunks_is_the_cross_entropy_and_so_are_its_gradients() -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(700, 8, requires_grad=True), torch.randn(90, 8, requires_grad=True)
    targets = torch.randint(90, (700,))
    wanted = torch.nn.functional.cross_entropy(hidden @ table.T, targets)
    loss = full_loss(hidden, table, targets)
    torch.testing.assert_close(loss, wanted)
    for got, right in zip(*(torch.autograd.grad(x, (hidden, table)) for x in (loss, wanted)), strict=True):
        torch.testing.assert_close(got, right)


def test_in_bfloat16_the_loss_and_the_table_s_gradient_stay_float32() -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(700, 8).bfloat16(), torch.randn(90, 8, requires_grad=True)
    loss = full_loss(hidden, table, torch.randint(90, (700,)))
    loss.backward()
    assert (loss.dtype, table.grad.dtype) == (torch.float32, torch.float32)


def test_a_sample_of_all_tokens_gives_the_full_loss() -> None:
    torch.manual_seed(0)
    hidden, table, targets = torch.randn(50, 8), torch.randn(90, 8), torch.randint(90, (50,))
    sampler = Sampler.of_counts(torch.arange(90), num_frequent=30, num_random=60)
    sample = sampler.draw(targets, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampled_loss(hidden, table, targets, *sample), full_loss(hidden, table, targets))


def test_those_drawn_stand_for_the_whole_rest() -> None:
    sampler = Sampler.of_counts(torch.arange(1000), num_frequent=100, num_random=90)
    tokens, offsets = sampler.draw(torch.tensor([3, 999]), torch.Generator().manual_seed(0))
    assert set(range(900, 1000)) | {3} <= set(tokens.tolist())
    assert offsets.exp()[offsets > 0] == pytest.approx(10.0)
    assert offsets[tokens == 3] == 0


# Steps.


def test_muon_s_updates_are_orthogonal_each_matrix_for_itself() -> None:
    torch.manual_seed(0)
    shapes = [(1, 16, 64), (3, 16, 16), (1, 64, 16)]
    for update in orthogonalize_all([torch.randn(shape) for shape in shapes]):
        values = torch.linalg.svdvals(update)
        assert values.min() > 0.5
        assert values.max() < 1.3
    assert parts(torch.randn(16, 48)).shape == (3, 16, 16)


def test_muon_learns() -> None:
    torch.manual_seed(0)
    weight, wanted = torch.nn.Parameter(torch.zeros(8, 24)), torch.randn(8, 24)
    optimizer = Muon([weight], lr=0.05)
    for _ in range(200):
        loss = (weight - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * wanted.square().mean()


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [TINY.rate_at(step, progress) for step, progress in ((0, 0), (500, 0.5), (900, 0.9), (1000, 1))]
    assert rates == pytest.approx([0.01, 1, 0.5, 0])


def test_a_run_that_goes_on_is_the_run_that_never_stopped(corpus: Path, bpe: Tokenizer, tmp_path: Path) -> None:
    stream = read_part(corpus / "stories.txt", bpe).train
    whole, first, second = (Trainer(TINY, stream, torch.device("cpu")) for _ in range(3))
    losses = [whole.train_step(0.5) for _ in range(12)]
    for _ in range(6):
        first.train_step(0.5)
    first.save(tmp_path / "checkpoint.pt")
    second.load(tmp_path / "checkpoint.pt")
    assert [second.train_step(0.5) for _ in range(6)] == pytest.approx(losses[6:], rel=1e-5)
    assert (second.step, second.tokens) == (12, whole.tokens)


def test_repeated_runs_are_counted_within_their_own_output() -> None:
    assert repeated_share([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]) == 0
    assert repeated_share([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(1 / 5)


def tool(*arguments: object) -> list[str]:
    return [sys.executable, str(TOOL), *map(str, arguments)]


# Repetition and averages.


def test_a_token_repeats_where_its_n_gram_stood_before_and_not_from_eos_on() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 1, 2, 3, 4, 1], [5, 5, 5, 5, 5, EOS, EOS, EOS, EOS]])
    assert repeats(ids).int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0, 0, 0]]
    assert not repeats(torch.tensor([[1, 1, 1]])).any()


def test_a_beginning_is_that_of_a_sentence(bpe: Tokenizer) -> None:
    windows = torch.tensor([bpe.encode(text).ids[:9] for text in ("went home. My dog is very, very old", " dog" * 9)])
    assert [bpe.decode(ids) for ids in beginnings(windows, 3).tolist()] == [" My dog is", " dog dog dog"]
    late = torch.tensor([bpe.encode("one two three four five. six").ids])
    assert beginnings(late, 4).shape == (1, 4)


def test_an_average_is_the_weighted_mean_of_networks(tmp_path: Path) -> None:
    networks = []
    for number in range(2):
        trainer = Trainer(replace(TINY, seed=number), np.zeros(100, dtype=np.uint16), torch.device("cpu"))
        trainer.save(tmp_path / f"{number}.pt")
        networks.append(trainer.network.transformer.wpe.weight)
    words = "average", tmp_path / "0.pt=1", tmp_path / "1.pt=3", "--to", tmp_path / "mean"
    train_bundled.average(train_bundled.make_parser().parse_args(list(map(str, words))))
    mean = torch.load(tmp_path / "mean" / "checkpoint.pt")["network"]["transformer.wpe.weight"]
    torch.testing.assert_close(mean, 0.25 * networks[0] + 0.75 * networks[1])


def test_unlikelihood_is_what_not_saying_the_repeated_tokens_would_cost() -> None:
    torch.manual_seed(0)
    network = Trainer(TINY, np.zeros(100, dtype=np.uint16), torch.device("cpu")).network.eval()
    ids = torch.tensor([[7, 8, 1, 2, 3, 4, 1, 2, 3, 4]])
    probabilities = network(ids).logits.softmax(dim=-1)[0]
    wanted = -sum(torch.log1p(-probabilities[column - 1, ids[0, column]]) for column in range(6, 10)) / 8
    torch.testing.assert_close(unlikelihood(network, ids, num_read=2), wanted)


def test_a_network_that_loops_learns_to_expect_it_less() -> None:
    trainer = Trainer(TINY, np.tile(np.arange(10, dtype=np.uint16), 200), torch.device("cpu"))
    for _ in range(300):
        trainer.train_step(0)
    written = continue_greedily(trainer.network, (torch.arange(10)[:, None] + torch.arange(4)) % 10, 30)[:, 4:]
    assert repeated_share(written.tolist()) > 0.5
    plan = Unrepeating(steps=10, rate=1.0, most_read=8, num_written=30)
    repetitions = [trainer.unrepeat_step(plan, number)[1] for number in range(plan.steps)]
    assert min(repetitions[-5:]) < 0.85 * repetitions[0]


# The whole recipe.


@pytest.mark.slow
def test_the_recipe_runs_stops_goes_on_and_ends_in_a_model(corpus: Path, tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    shape = ["--n-layer", 2, "--n-embd", 48, "--n-head", 3, "--save-s", 5]
    train = tool("train", corpus, "--run", run, "--device", "cpu", *shape)
    stopped = subprocess.Popen([*train, "--minutes", "10"])
    while not (run / "checkpoint.pt").exists():
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(PATIENCE_S) == 0
    subprocess.run([*train, "--minutes", "1"], check=True)
    subprocess.run(
        tool("unrepeat", corpus, "--run", run, "--to", tmp_path / "calm", "--steps", 3, "--device", "cpu"), check=True
    )
    parts = [f"{tmp_path / name}/checkpoint.pt={weight}" for name, weight in (("run", 1), ("calm", 2))]
    subprocess.run(tool("average", *parts, "--to", tmp_path / "mean"), check=True)
    subprocess.run(tool("export", "--run", tmp_path / "mean", "--to", model), check=True)
    said = subprocess.run(tool("evaluate", corpus, "--model", model), check=True, capture_output=True, text=True)
    assert "repeated 4-grams" in said.stdout
    [result] = batchgen.generate("The king", str(model), max_new_tokens=8)
    assert set(result.text.lower().replace(".", " ").split()) <= set(WORDS)
