"""The records that pass through batchgen. Imports neither torch nor rich."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from batchgen.records.chat import ChatOptions, Conversation, Message
from batchgen.records.constraint import Constraint
from batchgen.records.engine import (
    BATCH_INVARIANT,
    EngineChoice,
    EngineOptions,
    EngineStats,
    MemoryLimit,
    bits_text,
    parts_of_precision,
    precision_of,
)
from batchgen.records.field_error import FieldError
from batchgen.records.logprobs import Logprobs, TokenLogprob
from batchgen.records.near_names import near_name, plain_name
from batchgen.records.options import options_of, values_of
from batchgen.records.sampling import SamplingParams
from batchgen.records.scores import Passage, RowScore, ScoredKind, ScoredText, ScoringOptions
from batchgen.records.thought import Thought

if TYPE_CHECKING:
    import torch

# The names of this module and of the other modules in this package.
__all__ = [
    "BATCH_INVARIANT",
    "LONGEST_PROMPT",
    "LONGEST_ROW",
    "Batch",
    "ChatOptions",
    "Constraint",
    "Conversation",
    "EngineChoice",
    "EngineOptions",
    "EngineStats",
    "FieldError",
    "FinishReason",
    "Logprobs",
    "MemoryEstimate",
    "MemoryLimit",
    "Message",
    "Passage",
    "Request",
    "Result",
    "RowId",
    "RowScore",
    "RunStats",
    "SamplingParams",
    "ScoredKind",
    "ScoredText",
    "ScoringOptions",
    "Sequence",
    "Thought",
    "TokenLogprob",
    "TooLong",
    "bits_text",
    "near_name",
    "options_of",
    "parts_of_precision",
    "plain_name",
    "precision_of",
    "values_of",
]

FinishReason = Literal["stop", "length", "error"]
TooLong = Literal["error", "truncate"]
RowId = str | int | float
# A row fails beyond these limits: bytes of a row with all its columns, characters of a prompt. No model reads as much.
LONGEST_ROW = 8 * 2**20
LONGEST_PROMPT = 2 * 2**20
SAMPLE_BYTES = 200  # of a Sequence, on top of 8 for each token; a token is about four characters


@dataclass(frozen=True, slots=True)
class Request:
    """One row of the input. `error` says why it cannot run, if that was already found while reading.

    A row is a `prompt`, or a `conversation` whose prompt is rendered by the chat template. `beside` has the columns of
    a plain prompt that a chat template uses if the prompt goes through one: tools, documents, …
    `id` is None for a row that could not be read far enough to know it. `source` is its file and line, such as
    `prompts.txt:12`, or None if the row did not come from a file. `occurrence` counts earlier rows in the run with the
    same id: such rows share the id, but draw different samples.
    """

    index: int
    id: RowId | None
    prompt: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    source: str | None = None
    conversation: Conversation | None = None
    endpoint: str | None = None
    scored: ScoredKind | None = None
    replies: tuple[str, ...] = ()
    beside: dict[str, Any] = field(default_factory=dict)
    num_bytes: int = 0  # approximate memory of its columns, if a reader has counted it
    occurrence: int = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        return self.conversation.messages if self.conversation else ()

    @property
    def place(self) -> str:
        """Where the row is, for messages."""
        return self.source or f"prompt {self.index}"

    def located(self, error: str) -> str:
        """Prefix an error with the row's file and line, if it has them; an error that already has them is unchanged."""
        return f"{self.source}: {error.removeprefix(f'{self.source}: ')}" if self.source else error

    @property
    def weight(self) -> int:
        """The approximate memory that the row and its samples take, in bytes."""
        text = self.conversation.num_characters if self.conversation else len(self.prompt)
        samples = (self.sampling.num_samples - 1) * (SAMPLE_BYTES + 2 * text)
        return max(self.num_bytes, text) + samples


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """One prompt and its continuation so far; the only mutable record.

    `input_ids` are the prompt's tokens, `output_ids` the generated ones including eos; neither contains padding.
    `logprobs` has an entry for each output token, if the row asks for them. `batch_index` and `padded_length` say where
    the engine ran it. A row to be scored has `passages`, and `scores` for each passage by its index.
    """

    request: Request
    sample_index: int
    input_ids: list[int]
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    passages: tuple[Passage, ...] = ()
    scores: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    finish_reason: FinishReason | None = None
    error: str | None = None
    num_truncated_tokens: int = 0
    num_dropped_messages: int = 0
    batch_index: int | None = None
    padded_length: int | None = None
    thought: Thought | None = None
    num_thought_tokens: int = 0
    forced: list[int] = field(default_factory=list)  # positions of output tokens that the constraint forced

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the prompt and the output so far."""
        return self.input_ids + self.output_ids

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.output_ids)

    def note_logprob(self, logprob: TokenLogprob) -> None:
        """Record the next token's log-probability, replacing an earlier one: a step may be repeated."""
        self.logprobs[self.num_output_tokens :] = [logprob]

    def copy_answer(self, other: Sequence) -> None:
        """Copy the outcome of another sequence with the same tokens and options."""
        self.output_ids, self.logprobs = list(other.output_ids), list(other.logprobs)
        self.finish_reason = other.finish_reason
        if other.error is not None:
            self.fail(other.error.removeprefix(f"{other.request.source}: "))
        self.batch_index, self.padded_length = other.batch_index, other.padded_length
        self.num_thought_tokens, self.forced = other.num_thought_tokens, list(other.forced)

    def fail(self, error: str) -> None:
        """Finish the row with an error, prefixed with the row's file and line."""
        self.finish_reason, self.error = "error", self.request.located(error)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Sequences that run together, padded on the left to one length T.

    All three tensors are int64 `[B, T]`; `attention_mask` is 1 for real tokens and 0 for padding.
    """

    sequences: tuple[Sequence, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory that a batch needs, by part, in bytes."""

    weights: int
    kv_cache: int
    attention_mask: int
    logits: int
    activations: int
    workspace: int

    @property
    def tensors(self) -> int:
        """Bytes of the batch's own tensors, without weights and workspace."""
        return self.kv_cache + self.attention_mask + self.logits + self.activations

    @property
    def total(self) -> int:
        return self.weights + self.tensors + self.workspace


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the output. `prompt + text` is the whole text; `logprobs` are set if the row asks for them."""

    index: int  # position of the row in the input, from 0
    id: RowId | None  # the row's own id, otherwise its index as text; None if the row failed before an id could be read
    sample_index: int  # 0 to num_samples - 1
    prompt: str  # the prompt; for a conversation, the rendered text
    text: str  # the generated text
    finish_reason: FinishReason  # stop, length or error
    num_prompt_tokens: int  # prompt tokens, without pads
    num_output_tokens: int  # generated tokens, including the end token
    error: str | None  # why the row failed, with file and line; None otherwise
    metadata: dict[str, Any]  # all other columns of the row
    model: str  # the name of the model
    input_ids: tuple[int, ...] = ()  # prompt tokens, without pads
    output_ids: tuple[int, ...] = ()  # generated tokens, including the end token
    batch_index: int | None = None  # the batch in which the row ran
    padded_length: int | None = None  # columns of that batch, pads included
    source: str | None = None  # file and line: rows.jsonl:12
    messages: list[dict[str, Any]] | None = None  # the messages of a conversation, as given
    reasoning: str | None = None  # what the model thought before its answer
    tool_calls: list[dict[str, Any]] | None = None  # the model's tool calls
    endpoint: str | None = None  # the URL of an OpenAI Batch request
    cumulative_logprob: float | None = None  # sum of the log-probabilities of output_ids
    logprobs: Logprobs | None = None  # log-probabilities of output_ids and of the most likely alternatives
    score: RowScore | None = None  # what `score` found
    parsed: Any = None  # the value that the text is JSON for, if the row has a schema; None if it was cut short
    is_json: bool = False  # whether `parsed` is a complete JSON value
    forced: tuple[tuple[int, int], ...] = ()  # parts of `text` that the constraint left no choice: start and end

    @property
    def num_pads(self) -> int:
        return (self.padded_length or self.num_prompt_tokens) - self.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class RunStats:
    """What a run did. Seconds are wall-clock time; `peak_bytes` is the process's (or the device's) peak memory.

    `decode_work` is the sum of `planning.batches.step_work` over all decode steps. `predicted_batch_bytes` is what the
    largest batch was expected to add to the memory in use before it, `measured_batch_bytes` the most that any batch
    added (None if it cannot be measured).
    """

    rows: int  # rows of the input; samples are not counted
    errors: int  # failed rows
    blank_lines: int  # skipped blank lines
    batches: int  # batches, or prefills of the continuous engine
    prompt_tokens: int  # prompt tokens, without pads
    output_tokens: int  # generated tokens
    pad_tokens: int  # pads in all batches
    prefill_s: float  # seconds in prefills
    decode_s: float  # seconds in decode steps
    wall_s: float  # seconds from start to end
    peak_bytes: int  # high-water mark of the process, or of the device
    decode_work: int = 0  # cost of all decode steps, as the planner counts it
    predicted_batch_bytes: int = 0  # predicted memory of the largest batch
    measured_batch_bytes: int | None = None  # measured memory of the largest batch; None if unknown
    rows_kept: int = 0  # rows that an earlier run had finished
    drafted_tokens: int = 0  # tokens that prompt lookup tried
    accepted_tokens: int = 0  # tried tokens that were part of the answer

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of prefill and decode."""
        busy_s = self.prefill_s + self.decode_s
        return self.output_tokens / busy_s if busy_s else 0.0

    @property
    def padding_share(self) -> float:
        """The share of padding in all columns of the padded prompts, from 0 to 1."""
        columns = self.prompt_tokens + self.pad_tokens
        return self.pad_tokens / columns if columns else 0.0
