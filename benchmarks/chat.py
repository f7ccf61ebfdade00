"""What conversations cost: a system prompt that all rows share, and rendering and encoding.

python benchmarks/chat.py MODEL [--rows 200] [--conversations 100000]
Measures processor time and columns through the model: on a shared machine they are more reliable than elapsed time.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import batchgen
from batchgen import Model
from batchgen.model import Checkpoint, open_checkpoint
from batchgen.model.chat import open_chat
from batchgen.model.padding import encode
from batchgen.records import ChatOptions, Conversation, Message, Request, SamplingParams

WORDS = [
    "the", "rain", "will", "fall", "on", "a", "small", "dog", "and", "then", "it", "runs", "home", "to", "eat",
    "some", "hot", "soup", "with", "its", "friend",
]  # fmt: skip
PIECE = 10_000  # conversations that both ways encode before the next piece
WINDOW = 4_096  # rows that a run encodes at once


def write(source: random.Random, num_words: int) -> str:
    return " ".join(source.choices(WORDS, k=num_words))


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the columns, including pads, of each forward."""
    columns: list[int] = []
    forward = Model.forward

    def count(model: Model, batch: Any, *args: Any, **options: Any) -> Any:
        columns.append(batch.input_ids.numel())
        return forward(model, batch, *args, **options)

    with mock.patch.object(Model, "forward", count):
        yield columns


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def share_system_prompt(model: Model, template: str | None, num_rows: int, rounds: int, most: int) -> None:
    """Run rows with a system prompt of 300 tokens, alternating between sharing and not sharing it."""
    source = random.Random(1)
    system = write(source, 300)
    rows = [{"messages": [{"role": "user", "content": write(source, source.randint(4, 16))}]} for _ in range(num_rows)]
    answers: dict[bool, list[tuple[int, ...]]] = {}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for share in seconds:
            with counted() as columns:

                def generate(share: bool = share) -> None:
                    results = batchgen.generate(
                        rows, model, system=system, chat_template=template, share_prefixes=share,
                        max_new_tokens=most, ignore_eos=True,
                    )  # fmt: skip
                    answers[share] = [result.output_ids for result in results]

                seconds[share].append(cpu_seconds(generate))
            name = "shared" if share else "not shared"
            print(f"{name}: {seconds[share][-1]:.1f} CPU s, {len(columns)} forwards, {sum(columns):,} columns")
    ratio = min(seconds[False]) / min(seconds[True])
    print(f"{num_rows} rows, {most} new tokens: {ratio:.2f} times; same tokens: {answers[True] == answers[False]}")


def encode_conversations(checkpoint: Checkpoint, template: str | None, number: int) -> None:
    """Compare rendering and encoding with tokenizing the rendered texts one by one."""
    source, sampling = random.Random(0), SamplingParams()
    chat = open_chat(checkpoint, ChatOptions(template=template))
    tokenizer = checkpoint.tokenizer
    ours = one_by_one = 0.0
    for start in range(0, number, PIECE):
        told = [Conversation((Message("user", write(source, source.randint(3, 12))),)) for _ in range(PIECE)]
        requests = [Request(i, str(i), "", sampling, conversation=row) for i, row in enumerate(told, start)]
        rows = []

        def encode_all(requests: list[Request] = requests, rows: list[Any] = rows) -> None:
            for first in range(0, len(requests), WINDOW):
                rows += encode(requests[first : first + WINDOW], tokenizer, chat=chat)

        ours += cpu_seconds(encode_all)
        texts = [row.request.prompt for row in rows]
        one_by_one += cpu_seconds(lambda texts=texts: [tokenizer(text, add_special_tokens=False) for text in texts])
    print(f"{number:,} conversations: {ours:.1f} CPU s, one by one {one_by_one:.1f}: {ours / one_by_one:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--chat-template")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=100_000)
    options = parser.parse_args()
    if options.conversations:
        encode_conversations(
            open_checkpoint(options.model, weights=False), options.chat_template, options.conversations
        )
    if options.rows:
        model = batchgen.open_model(options.model, device="cpu", dtype="float32")
        share_system_prompt(model, options.chat_template, options.rows, options.rounds, options.new_tokens)


if __name__ == "__main__":
    main()
