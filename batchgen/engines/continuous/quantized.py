"""Convert a network to 8-bit integers by the products that this machine has: the same for every command."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn

from batchgen.engines.compiled.support import why_not_compiled
from batchgen.engines.continuous.linear import WITH_LOOPS
from batchgen.engines.continuous.packing import can_pack
from batchgen.engines.int8.calibrate import loud_columns
from batchgen.engines.int8.linear import Quantize
from batchgen.engines.int8.network import Blocks, paths_of, quantize
from batchgen.engines.int8.support import ALL_INT8, INT8, INT8_COMPILED
from batchgen.engines.trial.ladder import are_known_wrong
from batchgen.model import Model


def can_compile(model: Model) -> bool:
    """Whether loops can be compiled for a model, and no trial of them has failed."""
    can = can_pack(model.device, model.dtype) and why_not_compiled() is None
    return can and not are_any_known_wrong(model, WITH_LOOPS)


def are_any_known_wrong(model: Model, kernels: Iterable[str]) -> bool:
    return any(are_known_wrong(model, kind) for kind in kernels)


def int8_kernels(model: Model, begun: str | None = None) -> str:
    """Return the kernels for 8-bit integers: those of a run that was `begun` with them, else the best."""
    if begun in ALL_INT8:
        return begun
    return INT8_COMPILED if can_compile(model) else INT8


def quantize_network(model: Model, network: nn.Module, loaded: nn.Module | None, kernels: str) -> None:
    """Convert a network on a model's weights; for `loaded` see `int8.network.quantize`."""
    if kernels == INT8:
        quantize(network, loaded, loud=loud_columns(model))
        return
    from batchgen.engines.compiled.int8 import CompiledInt8, TiledWeight, num_loud_in_tiles

    def to_integers(follow: str) -> Quantize:
        return partial(TiledWeight.of, follow=follow)

    blocks = Blocks(CompiledInt8, paths_of(model.network), to_integers)
    loud = loud_columns(model, num_loud_in_tiles)
    quantize(network, loaded, loud=loud, blocks=blocks, to_integers=TiledWeight.of)
