"""The records of an examination. None stands for what could not be found out."""

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
    """A library: its version (None where it is missing) and the least that batchgen asks for."""

    name: str
    installed: str | None
    floor: str | None = None
    is_old: bool = False


@dataclass(frozen=True, slots=True)
class Installation:
    """Versions, and what torch was built for: `torch_build` is None for the CPU alone."""

    versions: tuple[Version, ...]
    python: str
    platform: str
    torch_problem: str | None
    torch_build: str | None
    has_nvidia: bool
    gone_names: tuple[str, ...] = ()  # private names of libraries that batchgen uses, and which are no longer there


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU; `vectors` is what torch's kernels use of it, `sixteen_bit` its instructions for 16-bit products."""

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
    """A measured matrix product; None where the device cannot do it."""

    dtype: str
    gflops: float | None


@dataclass(frozen=True, slots=True)
class LinearKernels:
    """Which kernels linear layers of a dtype run on in slots; `why_plain` where they are not packed."""

    dtype: str
    why_plain: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices and memory; `device` is the one that was measured, `bounds` are its memory's, tightest first."""

    processor: Processor
    accelerators: tuple[Accelerator, ...]
    auto_device: str | None
    device: str | None
    speeds: tuple[MatmulSpeed, ...]
    ram_bytes: int | None
    held_bytes: int | None
    bounds: tuple[Bound, ...]
    kernels: tuple[LinearKernels, ...] = ()
    bfloat16_gain: KeptGain | None = None  # as the last bench found it

    def ratio(self, dtype: str) -> float | None:
        """How many times float32's rate a dtype has."""
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
    """What `--model` finds without a network: the bundled one, GPT-2 or not, and all of the Hugging Face cache."""

    bundled: ModelAtHand | None
    has_gpt2: bool
    cached: tuple[ModelAtHand, ...]
    hf_home: str | None


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """What a model does with conversations; no `templates` where it has none.

    `opens` is the text ahead of the first user's message, `closes` the text behind the assistant's last one; None where
    the template refuses so plain a conversation. `closing_is_eos` is None where a turn is closed by plain text.
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
    """How a model runs, without its weights.

    `rows_of_a_batch` is None until a run has tried which rows may share one, and so is `bits`, whether a row's bits
    depend on its batch. `windows` counts the layers with attention by how many columns they see; None is all.
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
    """All that was found; `hub_answers` is None where it was not asked, `chat` and `model` where no model was named."""

    installation: Installation
    machine: Machine
    models: Models
    hub_answers: bool | None
    chat: ChatFacts | None = None
    model: ModelFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def or_else(otherwise: D) -> Callable[[Callable[P, T]], Callable[P, T | D]]:
    """Makes a function return `otherwise` where it would raise: what is broken must not hide the rest."""

    def decorate(function: Callable[P, T]) -> Callable[P, T | D]:
        @wraps(function)
        def tolerant(*args: P.args, **kwargs: P.kwargs) -> T | D:
            try:
                return function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - a broken library raises nearly anything
                return otherwise

        return tolerant

    return decorate
