"""The records of an examination. None means that a fact could not be determined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from batchgen.machine.limits import Bound
from batchgen.machine.speeds import KeptGain

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Version:
    """A library: its version (None if it is not installed) and the lowest that batchgen requires."""

    name: str
    installed: str | None
    floor: str | None = None
    is_old: bool = False


@dataclass(frozen=True, slots=True)
class Installation:
    """Versions, and what torch was built for: `torch_build` is None for CPU only."""

    versions: tuple[Version, ...]
    python: str
    platform: str
    torch_problem: str | None
    torch_build: str | None
    has_nvidia: bool
    gone_names: tuple[str, ...] = ()  # private names of libraries that batchgen uses, but that no longer exist


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU; `vectors` is the vector extension that torch uses, `sixteen_bit` its 16-bit product instructions."""

    name: str
    physical_cores: int | None
    logical_cores: int | None
    torch_threads: int | None
    threads_set_by: str | None
    vectors: str | None
    sixteen_bit: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A CUDA or Apple device."""

    name: str
    model: str
    total_bytes: int | None
    free_bytes: int | None
    compute_capability: str | None = None
    has_bfloat16: bool | None = None


@dataclass(frozen=True, slots=True)
class MatmulSpeed:
    """A measured matrix product; `gflops` is None if the device does not support the dtype."""

    dtype: str
    gflops: float | None


@dataclass(frozen=True, slots=True)
class LinearKernels:
    """The kernels that linear layers of a dtype use in slots; `why_plain` says why they are not packed, if so."""

    dtype: str
    why_plain: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices and memory; `device` is the measured one, `bounds` are its memory limits, tightest first."""

    processor: Processor
    accelerators: tuple[Accelerator, ...]
    auto_device: str | None
    device: str | None
    speeds: tuple[MatmulSpeed, ...]
    ram_bytes: int | None
    held_bytes: int | None
    bounds: tuple[Bound, ...]
    kernels: tuple[LinearKernels, ...] = ()
    why_not_compiled: str | None = None  # why small operations are not compiled; None if they can be
    bfloat16_gain: KeptGain | None = None  # from the last bench

    def ratio(self, dtype: str) -> float | None:
        """A dtype's rate relative to float32's."""
        rates = {speed.dtype: speed.gflops for speed in self.speeds}
        base, rate = rates.get("float32"), rates.get(dtype)
        return rate / base if base and rate else None


@dataclass(frozen=True, slots=True)
class ModelAtHand:
    """A model that needs no network."""

    name: str
    size_bytes: int
    parameters: int | None = None


@dataclass(frozen=True, slots=True)
class Models:
    """The models available without a network: the bundled one, GPT-2 if cached, and all others in the Hub's cache."""

    bundled: ModelAtHand | None
    has_gpt2: bool
    cached: tuple[ModelAtHand, ...]
    hf_home: str | None


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """How a model handles conversations; `templates` is empty if it has none.

    `opens` is the text before the first user message, `closes` the text after the last assistant message; both are None
    if the template fails on a minimal conversation. `closing_is_eos` is None if plain text closes a turn.
    """

    model: str
    templates: tuple[str, ...] = ()
    opens: str | None = None
    closes: str | None = None
    generation_prompt: str | None = None
    closing_is_eos: bool | None = None
    reasoning_marks: tuple[str, str] | None = None
    bos: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """How a model runs, determined without its weights.

    `rows_of_a_batch` (which rows may share a batch) and `bits` (whether a row's bits depend on its batch) are None
    until a run has tried them. `windows` counts the attention layers by the number of columns they see; None means all.
    """

    model: str
    family: str
    engine: str
    why_no_slots: str | None
    rows_of_a_batch: str | None
    bits: str | None
    dtype: str
    cache_bytes_per_token: int
    state_bytes_per_row: int
    num_layers: int
    windows: tuple[tuple[int | None, int], ...]
    context_length: int | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings; `hub_answers` is None if the Hub was not asked, `chat` and `model` if no model was named."""

    installation: Installation
    machine: Machine
    models: Models
    hub_answers: bool | None
    chat: ChatFacts | None = None
    model: ModelFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def or_else(otherwise: D) -> Callable[[Callable[P, T]], Callable[P, T | D]]:
    """Make a function return `otherwise` instead of raising: a broken part must not hide the rest."""

    def decorate(function: Callable[P, T]) -> Callable[P, T | D]:
        @wraps(function)
        def tolerant(*args: P.args, **kwargs: P.kwargs) -> T | D:
            try:
                return function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - a broken library raises almost anything
                return otherwise

        return tolerant

    return decorate
