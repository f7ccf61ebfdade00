"""Record each decoder layer's output for a row, forward by forward, and find where two runs of the row differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from batchgen.engines.choice import CONTINUOUS
from batchgen.proof.verify.bit_check import Parting
from batchgen.records import Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.engines import Engine
    from batchgen.engines.sampling.sampler import OnLogits
    from batchgen.model import Model

MakeEngine: TypeAlias = Callable[["OnLogits"], "Engine"]
# One forward's output for a row: states [n, E] after each layer for its real columns, and the last column's logits [V].
Forward: TypeAlias = "dict[str, torch.Tensor]"
OUTPUT = "the output layer"


class LayerWatch:
    """Keeps the output of each decoder layer in a network's last forward; `on_forward` gets the logits."""

    def __init__(self, model: Model, on_forward: Callable[[torch.Tensor], None] = lambda logits: None) -> None:
        self.model = model
        self.on_forward = on_forward
        self.input_ids: torch.Tensor | None = None  # [B, T]
        self.mask: torch.Tensor | None = None  # [B, T], of these columns
        self._made: Forward = {}

    @property
    def num_rows(self) -> int:
        return 0 if self.input_ids is None else len(self.input_ids)

    def states_of(self, row: int) -> Forward:
        """Copies of one row's states, by layer."""
        return {name: self._real(states[row], row).float().cpu().clone() for name, states in self._made.items()}

    def _real(self, states: torch.Tensor, row: int) -> torch.Tensor:
        """States `[n, E]` of the real columns; the last layer may have computed only the last column."""
        if self.mask is None or len(states) != self.mask.shape[1]:
            return states[-1:]
        return states[self.mask[row].bool().to(states.device)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        network = self.model.network
        handles = [
            network.register_forward_pre_hook(self._begin, with_kwargs=True),
            network.register_forward_hook(self._end),
        ]
        for name, layer in self.model.named_layers():
            handles.append(layer.register_forward_hook(self._keeper(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, network: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = self.input_ids = args[0] if args else kwargs.get("input_ids")
        mask = kwargs.get("attention_mask")
        self.mask = mask[:, -input_ids.shape[1] :] if mask is not None and input_ids is not None else None
        self._made = {}

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(layer: object, args: object, made: Any) -> None:
            self._made[name] = made[0] if isinstance(made, tuple) else made

        return keep

    def _end(self, network: object, args: object, made: Any) -> None:
        self.on_forward(made.logits[:, -1])


def find_parting(one: Rows[Forward], other: Rows[Forward]) -> Parting | None:
    """The first forward and its first layer whose states differ, or None; columns are aligned at the last one."""
    import torch

    for step, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        for layer in (name for name in mine if name in theirs):
            first, second = _columns_of_both(mine[layer], theirs[layer])
            if not torch.equal(first, second):
                return Parting(layer, step, float((first - second).abs().max()))
    return None


def _columns_of_both(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last columns that both have: after a shared prefix, a prefill has fewer columns. Logits `[V]` have none."""
    if one.dim() == 1:
        return one, other
    count = min(len(one), len(other))
    return one[len(one) - count :], other[len(other) - count :]


def trace(make: MakeEngine, rows: Rows[Sequence], index: int, last_step: int) -> list[Forward]:
    """Run `rows` through an engine and record the layers' outputs for the row `index`, from prefill to `last_step`."""
    forwards: list[Forward] = []

    def on_logits(logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
        place = next((place for place, row in enumerate(sequences) if row.request.index == index), None)
        if place is None:
            return
        # Finished rows stay in a batch of `reference`, but are not among `sequences`.
        is_aligned = engine.stats.engine == CONTINUOUS.name or len(sequences) == watch.num_rows
        states = watch.states_of(place) if is_aligned else {}
        forwards.append({**states, OUTPUT: logits[place].float().cpu().clone()})

    engine = make(on_logits)
    watch = LayerWatch(model_of(engine))
    with watch.watching():
        engine.add([Sequence(row.request, row.sample_index, list(row.input_ids)) for row in rows])
        while not engine.is_idle and len(forwards) <= last_step:
            engine.step()
    engine.close()
    return forwards


def model_of(engine: Engine) -> Model:
    """The model whose network an engine runs."""
    from batchgen.engines.continuous.engine import ContinuousEngine
    from batchgen.engines.reference.engine import ReferenceEngine

    if isinstance(engine, ContinuousEngine):
        return engine.slot_model.model
    assert isinstance(engine, ReferenceEngine)
    return engine.model
