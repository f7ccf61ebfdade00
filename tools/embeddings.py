"""Make initial word embeddings for the bundled model from another model's larger ones.

    python tools/embeddings.py SmolLM2-135M-Instruct.Q4_1.gguf --to smollm2.npy

Both vocabularies are byte-level BPE: a token that both have is copied; any other one is the mean of the tokens that the
other model splits it into. Then only the directions in which the wanted tokens differ most are kept.
Needs the package `gguf`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE

Floats = NDArray[np.float32]
TOKENIZER = Path(__file__).parent.parent / "batchgen" / "bundled" / "tokenizer.json"


def read_vocabulary(reader: GGUFReader) -> tuple[dict[str, int], Tokenizer]:
    """The other model's tokens, and a tokenizer that splits text into them."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ", 1)) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return vocabulary, Tokenizer(BPE(vocabulary, merges))


def read_embeddings(reader: GGUFReader) -> Floats:
    """The other model's embeddings `[vocabulary, width]`, in float32."""
    [tensor] = [tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"]
    return dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def carry_over(reader: GGUFReader, wanted: dict[str, int]) -> tuple[Floats, int]:
    """The embeddings `[wanted, width]` of the wanted tokens, and the number of tokens that both models have."""
    vocabulary, cutter = read_vocabulary(reader)
    theirs = read_embeddings(reader)
    ours = np.zeros((len(wanted), theirs.shape[1]), dtype=np.float32)
    for token, index in wanted.items():
        pieces = [vocabulary[token]] if token in vocabulary else cutter.encode(token).ids
        ours[index] = theirs[pieces].mean(axis=0) if pieces else theirs.mean(axis=0)
    return ours, len(vocabulary.keys() & wanted.keys())


def reduce(table: Floats, width: int, scale: float) -> Floats:
    """The `width` main components of the rows without their mean, scaled to a standard deviation of `scale`.

    No component keeps more than twice the median spread: the first one mostly reflects how frequent a token is.
    """
    centred = table - table.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    kept = centred @ directions[:, ::-1][:, :width]
    spread = kept.std(axis=0)
    kept *= np.minimum(1, 2 * np.median(spread) / spread)
    return kept * (scale / kept.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--scale", type=float, default=0.03)
    options = parser.parse_args()
    wanted = Tokenizer.from_file(str(TOKENIZER)).get_vocab()
    table, shared = carry_over(GGUFReader(options.gguf), wanted)
    print(f"{shared:,} of {len(wanted):,} tokens are in both vocabularies")
    np.save(options.to, reduce(table, options.width, options.scale))


if __name__ == "__main__":
    main()
