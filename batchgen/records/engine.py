"""How rows are run: with which engine, how many at a time, in how much memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any

from batchgen.records.options import check_values, option

BATCHES = "Batches"
BATCH_INVARIANT = "batch-invariant"
MOST_WORKERS = 4096


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A memory limit set by the user: bytes for the whole process, or a share of available memory; exactly one."""

    text: str
    size_bytes: int | None = None
    share: Fraction | None = None

    def headroom(self, tightest_bytes: int, held_bytes: int) -> int:
        """Bytes that may be taken on top of `held_bytes`, if all other limits leave `tightest_bytes`."""
        if self.share is not None:
            return int(self.share * tightest_bytes)
        assert self.size_bytes is not None
        return self.size_bytes - held_bytes


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How rows are run. `batch_size` and `workers` are None for automatic; `quantize` is None or `int8`.

    Raises `FieldError`.
    """

    engine: str = option(
        "auto",
        "continuous refills slots as rows finish (auto, where supported); reference uses transformers' generate.",
        panel=BATCHES,
        choices=("auto", "continuous", "reference"),
    )
    batch_size: int | None = option(
        None, "Rows per batch; auto uses as many as fit in memory.", value="auto|N", panel=BATCHES, least=1, none="auto"
    )
    memory: MemoryLimit | None = option(
        None,
        "Memory limit: 6G (including the weights), or 80% of the available memory.",
        value="SIZE|SHARE",
        panel=BATCHES,
    )
    exact: bool = option(
        True,
        "Give a row the same bits in any batch, and in float32 decide near ties from an unpadded forward pass.",
        panel=BATCHES,
    )
    share_prefixes: bool = option(True, "Compute tokens that several prompts begin with only once.", panel=BATCHES)
    prompt_lookup: bool = option(
        True,
        "With few rows, try several tokens per step that repeat a row's own text; the answers are the same.",
        panel=BATCHES,
    )
    workers: int | None = option(
        None,
        "Worker processes, each with its own copy of the model. Default: one per device.",
        value="N",
        panel=BATCHES,
        least=1,
        most=MOST_WORKERS,
    )
    quantize: str | None = option(
        None,
        "Compute linear layers in 8-bit integers: faster, and other tokens. Needs a CPU with AVX512-VNNI.",
        panel=BATCHES,
        choices=("int8",),
    )

    def __post_init__(self) -> None:
        check_values(self)

    def is_exact(self, dtype: str) -> bool:
        """Whether near ties are decided again from an unpadded forward: 16 and 8 bits are too coarse for that."""
        return self.exact and dtype == "float32" and self.quantize is None


def precision_of(dtype: str, quantize: str | None) -> str:
    """The precision that a model computes in, for display.
    >>> precision_of("float32", None), precision_of("bfloat16", "int8")
    ('float32', 'int8 and bfloat16')
    """
    return f"{quantize} and {dtype}" if quantize else dtype


def parts_of_precision(precision: str) -> tuple[str, str | None]:
    """Split a precision into the dtype and what linear layers are quantised to.
    >>> parts_of_precision("float32"), parts_of_precision("int8 and bfloat16")
    (('float32', None), ('bfloat16', 'int8'))
    """
    quantize, joint, dtype = precision.partition(" and ")
    return (dtype, quantize) if joint else (precision, None)


def bits_text(reason: str | None) -> str:
    """The guarantee about a row's bits; `reason` is why there may be none.
    >>> bits_text(None), bits_text("engine reference")
    ('batch-invariant', 'may depend on the batch: engine reference')
    """
    return BATCH_INVARIANT if reason is None else f"may depend on the batch: {reason}"


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Choices that affect how numbers round, made once for a run, all its workers, and any resume.

    `kernels` are those of linear layers, `batching` says which rows may share a batch, `rows` is the maximum per batch.
    `threads` is per process, None on an accelerator. `bits` is "batch-invariant" if a row's logits have the same bits
    in any batch, otherwise it says why they may not. On another `processor` they may differ in any case.
    """

    engine: str
    kernels: str
    batching: str
    rows: int
    threads: int | None
    share_prefixes: bool = True
    bits: str = BATCH_INVARIANT
    processor: str = ""

    @classmethod
    def from_dict(cls, facts: object) -> EngineChoice | None:
        """The choice that `to_dict` wrote; None for anything else."""
        names = {item.name for item in fields(cls)}
        return cls(**facts) if isinstance(facts, Mapping) and set(facts) == names else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, now: EngineChoice) -> list[str]:
        """What has changed, for messages.
        >>> EngineChoice("reference", "plain", "padded", 64, 2).differences(
        ...     EngineChoice("reference", "plain", "padded", 64, 1)
        ... )
        ['threads 2, now 1']
        """
        old, new = self.to_dict(), now.to_dict()
        return [f"{name.replace('_', ' ')} {old[name]}, now {new[name]}" for name in old if old[name] != new[name]]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done so far. Seconds are wall-clock time; bytes are of the process or the device.

    `new_tokens` counts tokens of finished and running rows; it falls if memory runs out and rows start over.
    `decode_work` is the sum of `planning.batches.step_work` over all steps. `host_syncs` counts how often the host
    waited for results from the device. `predicted_bytes` is what the largest batch was expected to add to the memory in
    use, `measured_bytes` the most that any batch added (None if it cannot be measured). `drafted_tokens` counts the
    tokens that prompt lookup tried, `accepted_tokens` the ones that became part of an answer.
    """

    engine: str = ""
    batches: int = 0
    new_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_work: int = 0
    host_syncs: int = 0
    peak_bytes: int = 0
    predicted_bytes: int = 0
    measured_bytes: int | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
