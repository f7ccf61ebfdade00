"""docs/models.md: the engine of each transformers family, tested on tiny random models.

    PYTHONPATH=. python tools/models_table.py

`make models` runs it, in about five minutes; `make test-models` compares the page with what models do.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import astuple, dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import torch
from transformers import __version__

import batchgen
from batchgen.engines.continuous.network import bits_of, slot_network
from batchgen.engines.reference.rules import LENGTHS as BATCHES
from batchgen.engines.reference.rules import Mixing
from batchgen.engines.trial.ladder import find_rule
from batchgen.machine.limits import cpu_name
from batchgen.model import Checkpoint, Model, open_checkpoint
from batchgen.model.checkpoint import attention_kernel
from batchgen.records import BATCH_INVARIANT
from tests.support.families import OPTIONS, config_of, family_of
from tests.support.models import generate_alone, model_of

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
HEAD = "| family | engine | rows of one batch | parity | same bits | why not slots |\n|---|---|---|---|---|---|"
DTYPES = (torch.float32, torch.bfloat16)
NEW_TOKENS, AT_ONCE = 12, 4
LENGTHS = (1, 4, 9, 33, 70, 2)  # words per prompt: within a window of 40 tokens, and beyond it
SENTENCE = "the rain in Spain falls mainly on the plain and my dog is very happy to see the green train again"
PROMPTS = [" ".join(islice(cycle(SENTENCE.split()), start, start + length)) for start, length in enumerate(LENGTHS)]
TEXT = """# Models

batchgen runs decoder-only language models of transformers. How fast depends on the engine. With `continuous`, rows
of any length run together in slots, and the next row takes the slot of a finished one; `reference` is transformers' own
`generate`, at about a third of the speed. [Engines](engines.md) explains both.

`batchgen doctor --model M` shows the engine of one model, from its config and without its weights.

Find your model by `model_type` in its `config.json`: SmolLM2 and TinyLlama are `llama`, Qwen2.5 is `qwen2`, Mistral 7B
is `mistral`. Names such as `phi3_longrope` and `mamba_with_biases` are variants of a family.

Of a model that also sees or hears, batchgen loads the text part. Mistral 3, LLaVA, InternVL, SmolVLM, LFM2-VL and
others run as the family of their `text_config`; Qwen2-VL and Qwen2.5-VL as `qwen2`, Qwen3-VL as `qwen3`; Gemma 3,
Gemma 3n, Gemma 4, Llama 4 and Qwen3.5 have rows of their own. GLM-4V, Qwen2.5-Omni and Llama 3.2 Vision are refused:
use a text-only model of the same family.

- **engine**: what `--engine auto` chooses.
- **rows of one batch**: which rows can run together. For `reference`, batchgen tests this when it first loads a model:
  it runs rows of very different lengths together and compares them with each row alone. It uses the first option that
  changes nothing: any lengths, any lengths with the model's own pad, equal lengths, one row at a time.
- **parity**: {prompts} prompts of 1 to 70 words, {tokens} new tokens in float32: how many rows get exactly the
  tokens of plain `generate` on that prompt alone.
- **same bits**: the precisions in which a row's logits have the same bits in any batch. A run tests this when it first
  loads a model; `--stats`, the manifest and `doctor` say what it found. In `reference` nothing is promised. Rows of
  models that scan their columns (Mamba, Qwen3-Next, Granite 4 and others) are prefilled one at a time for it;
  `--no-exact` prefills them together.
- **why not slots**: the reason, as a run prints it.

Each row of the table was measured on a tiny random model with {version}: {count} models, {slots} of them in slots.
Bits may differ on another processor; these are of {processor}.
`make models` writes this page, and `make test-models` checks it.

"""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    family: str
    engine: str
    batch: str
    parity: str
    bits: str
    reason: str

    def __str__(self) -> str:
        return f"| {' | '.join(astuple(self))} |"


def find_row(name: str, checkpoint: Checkpoint) -> Row | None:
    """The row of a family; None if the installed transformers does not have it."""
    config = config_of(name)
    if config is None:
        return None
    model = model_of(config, checkpoint, attention_kernel(config))
    # This runs first: RecurrentGemma reads a one-token prompt as a step after whatever its modules saw last.
    alone = [generate_alone(model, prompt, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS]
    own, reason = slot_network(model)
    batch = BATCHES[Mixing.padded] if own else find_rule(model)[0].lengths
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they repeat what the row says
        results = batchgen.generate(PROMPTS, model, max_new_tokens=NEW_TOKENS, batch_size=AT_ONCE)
    equal = sum(list(result.output_ids) == ids for result, ids in zip(results, alone, strict=True))
    parity = f"{equal} of {len(PROMPTS)}"
    bits = same_bits({dtype: _bits_in(dtype, model) for dtype in DTYPES}) if own else ""
    return Row(f"`{name}`", "continuous" if own else "reference", batch, parity, bits, reason)


def same_bits(found: dict[torch.dtype, str]) -> str:
    """The dtypes in which bits are the same in any batch, and what a run says about the others.

    >>> same_bits({torch.float32: "batch-invariant", torch.bfloat16: "may depend on the batch: …"})
    'float32; bfloat16 may depend on the batch: …'
    """
    names = {str(dtype).removeprefix("torch."): bits for dtype, bits in found.items()}
    held = ", ".join(name for name, bits in names.items() if bits == BATCH_INVARIANT)
    others = [f"{name} {bits}" for name, bits in names.items() if bits != BATCH_INVARIANT]
    return "; ".join([held, *others] if held else others)


def _bits_in(dtype: torch.dtype, model: Model) -> str:
    """What a run in a dtype would say about the bits of its rows."""
    if dtype != model.dtype:
        model = replace(model, network=deepcopy(model.network).to(dtype), dtype=dtype)
    own, reason = slot_network(model)
    return bits_of(own) if own else f"has no slots: {reason}"


def page(rows: Iterable[Row], version: str, processor: str) -> str:
    """The complete document."""
    rows = sorted(rows, key=lambda row: row.family)
    slots = sum(row.engine == "continuous" for row in rows)
    facts = {"prompts": len(PROMPTS), "tokens": NEW_TOKENS, "version": version, "count": len(rows), "slots": slots}
    facts["processor"] = processor
    return TEXT.format(**facts) + "\n".join([HEAD, *map(str, rows)]) + "\n"


def rows_of(text: str) -> list[Row]:
    """The rows of a page."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [Row(*(cell.strip() for cell in line[1:-1].split("|"))) for line in lines]


def main() -> None:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # no verdicts from earlier runs
    checkpoint, rows = open_checkpoint("bundled"), []
    for name in OPTIONS:
        row = find_row(name, checkpoint)
        print(row or f"transformers {__version__} has no {family_of(name)}", file=sys.stderr)
        rows += [row] if row else []
    version = f"transformers {__version__}"
    PAGE.write_text(page(rows, version, cpu_name()), encoding="utf-8")


if __name__ == "__main__":
    main()
