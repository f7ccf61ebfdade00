"""What many tests share: no network, an empty cache, tiny random models, the bundled one, a fake engine."""

from __future__ import annotations

import gc
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="batchgen-tests-")
os.environ["XDG_CONFIG_HOME"] = os.environ["HF_HOME"]
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `batchgen.__main__` does, before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and several processes share the cores

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoTokenizer,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from batchgen.model import Checkpoint, Model, open_checkpoint, open_model
from batchgen.model.find import BUNDLED_FOLDER
from batchgen.planning.backoff import Backoff
from batchgen.planning.memory import BatchLimits, Footprint, ModelShape
from batchgen.records import Request, SamplingParams, Sequence

# The machines that run the tests are shared: no example fails for being slow.
settings.register_profile("batchgen", deadline=None)
settings.load_profile("batchgen")


def pytest_configure() -> None:
    gc.set_threshold(50_000)  # as `batchgen.machine.process` does


RAIN = ["It will rain in the", "I want to eat a big bowl of", "My dog is"]
EOS = 50256
SMALL = {"vocab_size": 50257, "bos_token_id": EOS, "eos_token_id": EOS}
# Learned, rotary (full and partial, with grouped-query heads) and ALiBi positions.
ARCHITECTURES = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **SMALL),
    "gpt_neox": GPTNeoXConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, **SMALL,
    ),
    "opt": OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32,
        max_position_embeddings=128, pad_token_id=1, **SMALL,
    ),
    "llama": LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        max_position_embeddings=128, **SMALL,
    ),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SMALL),
}  # fmt: skip


def make_network(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model whose logits spread like a trained one's, so that greedy text varies and ties are rare."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(ARCHITECTURES[name], attn_implementation="eager")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network


@pytest.fixture(scope="session", autouse=True)
def bundled_tokenizer_is_read_once() -> Iterator[None]:
    """Hundreds of tests run the bundled model in this process, and its tokenizer takes a third of a second to read."""
    read = AutoTokenizer.from_pretrained
    kept: dict[str, PreTrainedTokenizerBase] = {}

    def read_once(folder: Path, **options: object) -> PreTrainedTokenizerBase:
        if folder != BUNDLED_FOLDER:
            return read(folder, **options)
        if repr(options) not in kept:
            kept[repr(options)] = read(folder, **options)
        return kept[repr(options)]

    with mock.patch.object(AutoTokenizer, "from_pretrained", read_once):
        yield


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return open_checkpoint("bundled")


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    return checkpoint.tokenizer


@pytest.fixture(scope="session")
def bundled() -> Model:
    return open_model("bundled", device="cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> dict[str, Path]:
    """A saved random model of each architecture."""
    made = {}
    for name in ARCHITECTURES:
        made[name] = tmp_path_factory.mktemp(name)
        make_network(name).save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.fixture(scope="session")
def tiny_models(folders: dict[str, Path]) -> dict[str, Model]:
    return {name: open_model(str(folder), device="cpu") for name, folder in folders.items()}


def decide_alone(model: Model, prompt: str, max_new_tokens: int) -> list[int]:
    """Output ids up to EOS, each from a forward of the whole unpadded row, without a cache."""
    input_ids = model.checkpoint.tokenizer(prompt)["input_ids"]
    output_ids: list[int] = []
    with torch.inference_mode():
        while len(output_ids) < max_new_tokens and EOS not in output_ids:
            ids = torch.tensor([input_ids + output_ids])
            output_ids.append(int(model.network(ids, logits_to_keep=1, use_cache=False).logits[0, -1].argmax()))
    return output_ids


@pytest.fixture(scope="session")
def said(bundled: Model) -> Callable[[str, int], str]:
    """What the bundled model says to a prompt in so many tokens."""
    return lambda prompt, num_tokens: bundled.checkpoint.tokenizer.decode(decide_alone(bundled, prompt, num_tokens))


class FakeEngine:
    """Finishes each row with the tokens of its own prompt, in reverse of the order given."""

    name = "fake"
    is_busy = False
    num_batches = decode_work = 0
    prefill_s = decode_s = 0.0

    def __init__(self, first_window: int = 16) -> None:
        footprint = Footprint.of_shape(ModelShape.from_config(ARCHITECTURES["gpt2"]), element_bytes=4)
        self.backoff = Backoff(BatchLimits(footprint, 1 << 40, most_rows=64, num_rows=first_window))
        self.windows: list[int] = []  # rows of each that ran

    def generate(self, windows: Iterable[list[Sequence]]) -> Iterator[Sequence]:
        for window in windows:
            yield from (sequence for sequence in window if sequence.is_finished)
            rows = [sequence for sequence in window if not sequence.is_finished]
            self.windows.append(len(rows))
            self.num_batches += bool(rows)
            for sequence in reversed(rows):
                sequence.output_ids = list(sequence.input_ids)
                sequence.finish_reason = "length"
                sequence.batch_index, sequence.padded_length = self.num_batches, len(sequence.input_ids)
                yield sequence


@pytest.fixture
def fake_engine() -> FakeEngine:
    return FakeEngine()


def requests_of(prompts: Iterable[str], **sampling: object) -> list[Request]:
    params = replace(SamplingParams(), **sampling)
    return [Request(index, str(index), prompt, params) for index, prompt in enumerate(prompts)]
