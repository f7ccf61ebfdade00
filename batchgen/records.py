"""The records that flow through batchgen. Imports neither torch nor rich."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length", "error"]
TooLong = Literal["error", "truncate"]
RowId = str | int | float
# Logits times or over a factor within these bounds stay finite in float32.
LEAST_FACTOR, MOST_FACTOR = 1e-6, 1e6
# Beyond these a row fails: bytes of a row with all its columns, characters of a prompt. No model reads as much.
LONGEST_ROW = 8 * 2**20
LONGEST_PROMPT = 2 * 2**20


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. `temperature` 0 is greedy; 0 turns `top_k`, `min_p` and n-gram bans off.

    Raises `ValueError` where a value is out of range or two options contradict each other.
    """

    max_new_tokens: int = 50
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_samples: int = 1
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        # A single string is one stop, and a list is as good as a tuple.
        given: object = self.stop
        stop = (given,) if isinstance(given, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        self._check_ranges()
        self._check_contradictions()

    def _check_ranges(self) -> None:
        least = {
            "max_new_tokens": 1,
            "min_new_tokens": 0,
            "top_k": 0,
            "no_repeat_ngram_size": 0,
            "num_samples": 1,
            "num_beams": 1,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            _require(value >= bound, f"{_flag(name)} {value} is below {bound}")
        _require(
            self.temperature == 0 or LEAST_FACTOR <= self.temperature <= MOST_FACTOR,
            f"--temperature {self.temperature} is not a number in [{LEAST_FACTOR:g}, {MOST_FACTOR:g}], nor 0 (greedy)",
        )
        _require(0 < self.top_p <= 1, f"--top-p {self.top_p} is not in (0, 1]")
        _require(0 <= self.min_p <= 1, f"--min-p {self.min_p} is not in [0, 1]")
        _require(
            LEAST_FACTOR <= self.repetition_penalty <= MOST_FACTOR,
            f"--repetition-penalty {self.repetition_penalty} is not a number above 0, "
            f"in [{LEAST_FACTOR:g}, {MOST_FACTOR:g}] (1 turns it off)",
        )
        _require(all(self.stop), "--stop needs a non-empty text")

    def _check_contradictions(self) -> None:
        _require(
            self.min_new_tokens <= self.max_new_tokens,
            f"--min-new-tokens {self.min_new_tokens} is above --max-new-tokens {self.max_new_tokens}",
        )
        if self.is_greedy:
            mend = "needs a --temperature above 0 (0 is greedy)"
            _require(self.top_k == 0, f"--top-k {mend}")
            _require(self.top_p == 1, f"--top-p {mend}")
            _require(self.min_p == 0, f"--min-p {mend}")
            _require(self.num_samples == 1, f"--num-samples {self.num_samples} {mend}")
        else:
            _require(
                self.num_beams == 1,
                f"--num-beams {self.num_beams} searches, --temperature {self.temperature:g} samples: choose one",
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Request:
    """One row of the input. `error` says why it cannot be run, where reading already showed that.

    `where` is its place for a person, `prompts.txt:12`; empty for what has none.
    """

    index: int
    id: RowId
    prompt: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    where: str = ""

    @property
    def num_characters(self) -> int:
        """Of its prompt and of columns that are text: what holding it costs."""
        return len(self.prompt) + sum(len(value) for value in self.metadata.values() if isinstance(value, str))


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt on its way to one continuation; the only record that changes.

    `input_ids` are the prompt's real tokens, `output_ids` the generated ones with the eos, neither has pads.
    `batch_index` and `padded_length` say where the engine ran it.
    """

    request: Request
    sample_index: int
    input_ids: list[int]
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    num_truncated_tokens: int = 0
    batch_index: int | None = None
    padded_length: int | None = None

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output so far."""
        return self.input_ids + self.output_ids

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.output_ids)

    def copy_answer(self, other: Sequence) -> None:
        """Takes over what another sequence with the same tokens and options was given."""
        self.output_ids = list(other.output_ids)
        self.finish_reason, self.error = other.finish_reason, other.error
        self.batch_index, self.padded_length = other.batch_index, other.padded_length

    def fail(self, error: str) -> None:
        self.finish_reason, self.error = "error", error


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Sequences that run together, padded on the left to one length T.

    All three tensors are int64 `[B, T]`; `attention_mask` is 1 on real tokens, 0 on pads.
    """

    sequences: tuple[Sequence, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a batch needs, by part, in bytes."""

    weights: int
    kv_cache: int
    attention_mask: int
    logits: int
    activations: int
    workspace: int

    @property
    def tensors(self) -> int:
        """What a batch itself holds."""
        return self.kv_cache + self.attention_mask + self.logits + self.activations

    @property
    def total(self) -> int:
        return self.weights + self.tensors + self.workspace


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the output. `prompt + text` is the whole text; `num_output_tokens` counts the eos."""

    index: int
    id: RowId
    sample_index: int
    prompt: str
    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    error: str | None
    metadata: dict[str, Any]
    model: str
    input_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()
    batch_index: int | None = None
    padded_length: int | None = None

    @property
    def num_pads(self) -> int:
        return (self.padded_length or self.num_prompt_tokens) - self.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class RunStats:
    """What a run did. Seconds are wall clock; `peak_bytes` is the process's (or the device's) high-water mark.

    `decode_work` is the sum over all steps of the step's cost as the planner counts it (`planner.step_work`).
    `predicted_batch_bytes` is what the largest batch was expected to add to what the process held before it,
    `measured_batch_bytes` what the one that added most did add (None where it cannot be measured).
    """

    rows: int
    errors: int
    blank_lines: int
    batches: int
    prompt_tokens: int
    output_tokens: int
    pad_tokens: int
    prefill_s: float
    decode_s: float
    wall_s: float
    peak_bytes: int
    decode_work: int = 0
    predicted_batch_bytes: int = 0
    measured_batch_bytes: int | None = None

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens for each second of prefill and decode."""
        busy_s = self.prefill_s + self.decode_s
        return self.output_tokens / busy_s if busy_s else 0.0

    @property
    def padding_share(self) -> float:
        """Pads over all columns of the padded prompts, 0 to 1."""
        columns = self.prompt_tokens + self.pad_tokens
        return self.pad_tokens / columns if columns else 0.0
