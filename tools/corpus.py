"""Turn files of documents into streams of token ids, with a held-out part of each. Knows no model.

A file is UTF-8 text, plain or xz-compressed; a line `<|endoftext|>` separates its documents.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.uint16]

EOS = 50256
SEPARATOR = "<|endoftext|>"
HELD_OUT_SHARE_OF_BOOK = 0.02
HELD_OUT_EVERY, HELD_OUT_INDEX = 40, 7
GRAM = 13
MOST_SHARED_GRAMS = 0.002  # share of a document; above it, the document counts as held out
QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u00a0", "''\"\" ", "\u200b\u2060")


@dataclass(frozen=True, slots=True)
class Part:
    """The training and held-out ids of one file; every document ends with EOS."""

    train: Ids  # [tokens]
    held_out: Ids  # [tokens]


def read_part(path: Path, tokenizer: Tokenizer) -> Part:
    """Read a file and hold out the end of each book and every fortieth of the other documents."""
    train: list[Ids] = []
    held_out: list[Ids] = []
    for index, document in enumerate(read_documents(path)):
        ids = encode(document, tokenizer)
        if is_book(document):
            cut = int(len(ids) * (1 - HELD_OUT_SHARE_OF_BOOK))
            train.append(ids[:cut])
            held_out.append(ids[cut:])
        else:
            (held_out if index % HELD_OUT_EVERY == HELD_OUT_INDEX else train).append(ids)
    return Part(join(train), join(held_out))


def read_extra(path: Path, tokenizer: Tokenizer, held_out: Iterable[Ids]) -> Part:
    """Read a file for training only, without the documents that repeat what other files hold out."""
    known = np.concatenate([grams(ids) for ids in held_out])
    documents = (encode(document, tokenizer) for document in read_documents(path))
    return Part(join([ids for ids in documents if not repeats(ids, known)]), join([]))


def read_documents(path: Path) -> Iterator[str]:
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for document in file.read().split(f"\n{SEPARATOR}\n"):
            yield document.removesuffix(SEPARATOR)


def is_book(document: str) -> bool:
    return document.startswith("# ")


def clean(document: str) -> str:
    """Normalize a document: straight quotes; in a book also one line per paragraph, and no headings.
    >>> clean("# Title: X\\n\\nIt was\\nlate.\\n\\n## II\\n\\n“Yes.”")
    'It was late.\\n"Yes."'
    """
    document = document.translate(QUOTES).strip()
    if not is_book(document):
        return document
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", document))
    return "\n".join(p for p in paragraphs if p and not p.startswith("#") and p.strip("-* "))


def encode(document: str, tokenizer: Tokenizer) -> Ids:
    return np.array([*tokenizer.encode(clean(document)).ids, EOS], dtype=np.uint16)


def join(documents: list[Ids]) -> Ids:
    return np.concatenate(documents) if documents else np.zeros(0, dtype=np.uint16)


def grams(ids: Ids) -> NDArray[np.uint64]:
    """A hash of each sequence of GRAM tokens."""
    if len(ids) < GRAM:
        return np.zeros(0, dtype=np.uint64)
    factors = np.random.default_rng(0).integers(1, 1 << 63, GRAM, dtype=np.uint64)
    return np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), GRAM) @ factors


def repeats(ids: Ids, known: NDArray[np.uint64]) -> bool:
    own = grams(ids)
    return len(own) > 0 and float(np.isin(own, known).mean()) > MOST_SHARED_GRAMS


def window_starts(num_tokens: int, length: int, *, seed: int, turn: int, count: int) -> NDArray[np.int64]:
    """The starts of step `turn`'s windows: each pass cuts the stream again and takes its windows in random order.

    A pure function of its arguments, so a resumed run only needs its number of steps.
    """
    per_pass = num_tokens // length - 1
    starts = []
    for number in range(turn * count, (turn + 1) * count):
        if not starts or number % per_pass == 0:
            source = np.random.default_rng([seed, length, number // per_pass])
            shift, order = source.integers(length), source.permutation(per_pass)
        starts.append(shift + length * order[number % per_pass])
    return np.array(starts)
