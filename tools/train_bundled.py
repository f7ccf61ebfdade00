"""Train the GPT-2 in `batchgen/bundled`, from text files to weights. Needs only what batchgen needs.

    python tools/train_bundled.py train ../shared/corpus --run runs/one --tokens 40e6
    python tools/train_bundled.py unrepeat ../shared/corpus --run runs/one --to runs/two
    python tools/train_bundled.py average runs/one/checkpoint.pt=4 runs/two/checkpoint.pt=5 --to runs/three
    python tools/train_bundled.py export --run runs/three --to batchgen/bundled
    python tools/train_bundled.py evaluate ../shared/corpus --model batchgen/bundled

`train` may be stopped at any time, also by a crash, and continues from its last checkpoint. Its learning rate is flat
until the last part of the budget, where it falls to zero: call it again with a larger `--tokens` to train longer, or
with a smaller one to finish soon.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import Ids, Part, join, read_extra, read_part
from evaluation import held_out_losses, repeated_share
from recipe import Recipe, Unrepeating
from tokenizers import Tokenizer
from trainer import Trainer
from transformers import GPT2LMHeadModel

import batchgen
from batchgen.model.find import BUNDLED_FOLDER

CHECKPOINT = "checkpoint.pt"
NUM_PROMPTS, NUM_GREEDY_TOKENS = 100, 40
PROMPTS = [Path("prompts/varied.jsonl"), Path("prompts/skewed.txt")]


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of a run, which ends when either part is used up."""

    tokens: float
    seconds: float

    def progress(self, trainer: Trainer) -> float:
        return max(trainer.tokens / self.tokens, trainer.seconds / self.seconds)


class Timer:
    """Is due every `every_s` seconds."""

    def __init__(self, every_s: float) -> None:
        self.every_s, self.last = every_s, time.monotonic()

    def is_due(self) -> bool:
        if time.monotonic() - self.last < self.every_s:
            return False
        self.last = time.monotonic()
        return True


def read_corpus(options: argparse.Namespace) -> dict[str, Part]:
    """Read all files, by name; `--extra` files have no held-out part."""
    tokenizer = Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))
    paths = sorted(path for path in options.data.iterdir() if path.name.endswith((".txt", ".txt.xz")))
    corpus = {name_of(path): read_part(path, tokenizer) for path in paths}
    held_out = [part.held_out for part in corpus.values()]
    return corpus | {name_of(path): read_extra(path, tokenizer, held_out) for path in options.extra}


def name_of(path: Path) -> str:
    return path.name.split(".")[0]


def held_out_of(corpus: dict[str, Part]) -> dict[str, Ids]:
    return {name: part.held_out for name, part in corpus.items() if len(part.held_out)}


def stream_of(corpus: dict[str, Part], repeat: dict[str, int]) -> Ids:
    return join([part.train for name, part in corpus.items() for _ in range(repeat.get(name, 1))])


def fields_of(kind: type[Recipe | Unrepeating], options: argparse.Namespace) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(kind)}


def train(options: argparse.Namespace) -> None:
    """Start a run, or continue it."""
    options.run.mkdir(parents=True, exist_ok=True)
    checkpoint = options.run / CHECKPOINT
    corpus = read_corpus(options)
    recipe = Recipe(**fields_of(Recipe, options))
    trainer = Trainer(recipe, stream_of(corpus, dict(options.repeat)), torch.device(options.device))
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif options.embeddings:
        trainer.start_from(np.load(options.embeddings))
    say(f"{len(trainer.stream):,} training tokens, {trainer.network.num_parameters():,} parameters, {recipe}")
    evaluation = Timer(options.evaluate_s)
    for trained in rounds(trainer, Budget(options.tokens, options.minutes * 60), options.save_s):
        trained.save(checkpoint)
        if evaluation.is_due():
            tell_losses(trained.network, corpus)
    tell_losses(trainer.network, corpus)


def unrepeat(options: argparse.Namespace) -> None:
    """Teach a finished run to repeat itself less, and save it as another run."""
    corpus, plan = read_corpus(options), Unrepeating(**fields_of(Unrepeating, options))
    recipe = Recipe(**torch.load(options.run / CHECKPOINT, map_location="cpu")["recipe"])
    trainer = Trainer(recipe, stream_of(corpus, dict(options.repeat)), torch.device(options.device))
    trainer.load(options.run / CHECKPOINT)
    say(f"{plan}")
    for number in range(plan.steps):
        loss, repetition = trainer.unrepeat_step(plan, number)
        if number % 10 == 9:
            say(f"step {number + 1}, loss {loss:.3f}, unlikelihood {repetition:.3f}")
    options.to.mkdir(parents=True, exist_ok=True)
    trainer.save(options.to / CHECKPOINT)
    tell_losses(trainer.network, corpus)


def average(options: argparse.Namespace) -> None:
    """Save the weighted mean of several checkpoints of one run as another run."""
    states = [torch.load(path, map_location="cpu") for path, _ in options.checkpoints]
    shares = torch.tensor([weight for _, weight in options.checkpoints])
    shares /= shares.sum()
    networks = [state["network"] for state in states]
    mean = {
        name: sum(share * network[name] for share, network in zip(shares, networks, strict=True))
        for name in networks[0]
    }
    options.to.mkdir(parents=True, exist_ok=True)
    torch.save(states[-1] | {"network": mean}, options.to / CHECKPOINT)


def rounds(trainer: Trainer, budget: Budget, every_s: float) -> Iterator[Trainer]:
    """Train, and yield the trainer whenever it should be saved: every `every_s` seconds, and at the end or a signal."""
    told: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: told.append(number))
    timer, losses, started = Timer(every_s), [], (trainer.tokens, trainer.seconds)
    while (progress := budget.progress(trainer)) < 1 and not told:
        losses.append(trainer.train_step(progress))
        if timer.is_due():
            rate = (trainer.tokens - started[0]) / (trainer.seconds - started[1])
            say(f"step {trainer.step}, {trainer.tokens:,} tokens, {rate:.0f}/s, loss {statistics.mean(losses):.3f}")
            losses, started = [], (trainer.tokens, trainer.seconds)
            yield trainer
    yield trainer


def tell_losses(network: GPT2LMHeadModel, corpus: dict[str, Part]) -> None:
    losses = held_out_losses(network, held_out_of(corpus))
    say("held-out loss: " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))


def say(line: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


def evaluate(options: argparse.Namespace) -> None:
    """Show a model folder's held-out losses, and how much its greedy continuations of `--prompts` repeat themselves."""
    tell_losses(GPT2LMHeadModel.from_pretrained(options.model, dtype=torch.float32), read_corpus(options))
    rows = [row for path in options.prompts for row in read_rows(path)][:NUM_PROMPTS]
    results = batchgen.generate(rows, str(options.model), max_new_tokens=NUM_GREEDY_TOKENS)
    share = repeated_share([result.output_ids for result in results])
    say(f"repeated 4-grams: {share:.1%} of those in {NUM_GREEDY_TOKENS} greedy tokens after {len(rows)} prompts")


def export(options: argparse.Namespace) -> None:
    """Write a run's network as float16 safetensors, with its configuration and tokenizer."""
    state = torch.load(options.run / CHECKPOINT, map_location="cpu")
    network = GPT2LMHeadModel(Recipe(**state["recipe"] | {"dropout": 0}).config)
    network.load_state_dict(state["network"])
    network.config.activation_function = "gelu_new"
    network.half().save_pretrained(options.to)
    settings = json.loads((BUNDLED_FOLDER / "tokenizer_config.json").read_text())
    settings["model_max_length"] = network.config.n_positions
    (options.to / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (options.to / "tokenizer.json").write_bytes((BUNDLED_FOLDER / "tokenizer.json").read_bytes())


def read_rows(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines] if path.suffix == ".jsonl" else lines


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    trainer = add_command(commands, train)
    trainer.add_argument("--tokens", type=float, default=math.inf)
    trainer.add_argument("--minutes", type=float, default=math.inf)
    trainer.add_argument("--embeddings", type=Path, help="a .npy file to start from, of tools/embeddings.py")
    trainer.add_argument("--save-s", type=float, default=180, help="seconds between checkpoints")
    trainer.add_argument("--evaluate-s", type=float, default=1200, help="seconds between held-out losses")
    unrepeater = add_command(commands, unrepeat)
    unrepeater.add_argument("--to", type=Path, required=True, help="folder of the new checkpoint")
    for command, kind in ((trainer, Recipe), (unrepeater, Unrepeating)):
        command.add_argument("--run", type=Path, required=True, help="folder of the checkpoint")
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument(
            "--repeat", type=name_and_count, action="append", default=[], metavar="NAME=TIMES",
            help="how often a pass has a file",
        )  # fmt: skip
        for field in fields(kind):
            command.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    averager = add_command(commands, average)
    averager.add_argument("checkpoints", type=path_and_weight, nargs="+", metavar="CHECKPOINT=WEIGHT")
    averager.add_argument("--to", type=Path, required=True, help="folder of the new checkpoint")
    evaluator = add_command(commands, evaluate)
    evaluator.add_argument("--model", type=Path, default=BUNDLED_FOLDER)
    evaluator.add_argument("--prompts", type=Path, nargs="+", default=PROMPTS)
    for command in (trainer, unrepeater, evaluator):
        command.add_argument("data", type=Path, help="folder of .txt and .txt.xz files")
        command.add_argument(
            "--extra", type=Path, nargs="*", default=[], help="files to train on that hold nothing out"
        )
    exporter = add_command(commands, export)
    exporter.add_argument("--run", type=Path, required=True)
    exporter.add_argument("--to", type=Path, required=True)
    return parser


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(run.__name__, help=run.__doc__)
    parser.set_defaults(command=run)
    return parser


def name_and_count(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    return name, int(count)


def path_and_weight(text: str) -> tuple[Path, float]:
    path, _, weight = text.rpartition("=")
    return Path(path), float(weight)


if __name__ == "__main__":
    options = make_parser().parse_args()
    options.command(options)
