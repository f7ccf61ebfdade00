"""The slots' own network: the model's weights with our attention and faster layers; built and tried once per model.

A model's config tells whether it can have slots at all; a trial proves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias
from weakref import WeakKeyDictionary

from torch import nn

from batchgen.engines.compiled.support import LEAST_PARAMETERS
from batchgen.engines.continuous.latents import keep_latents
from batchgen.engines.continuous.layer import ATTENTION
from batchgen.engines.continuous.linear import PLAIN, WITH_BLOCKS, WITH_LOOPS, kernels_of, speed_up, unpack
from batchgen.engines.continuous.packing import can_pack
from batchgen.engines.continuous.quantized import are_any_known_wrong, can_compile, quantize_network
from batchgen.engines.continuous.requirements import why_no_slots
from batchgen.engines.continuous.row_rotary import rotate_by_row
from batchgen.engines.continuous.same_bits import fix_bits
from batchgen.engines.fused.recognize import fuse_layers
from batchgen.engines.int8.support import ALL_INT8, ANY_INT8, INT8, INT8_COMPILED
from batchgen.engines.trial.ladder import find_bits, why_slots_fail
from batchgen.model import Model
from batchgen.model.layer_rules import layer_rules
from batchgen.model.long_rope import short_limit
from batchgen.records import bits_text

Names: TypeAlias = tuple[str, ...]
Kind: TypeAlias = tuple[str | None, bool]  # the requested kernels, and whether bits must be the same in any batch
# For each loaded network that is still in use: the slots' own network, or why there is none.
_found: WeakKeyDictionary[nn.Module, dict[Kind, Model | str]] = WeakKeyDictionary()
_bits: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # what is guaranteed about the bits of each network


def slot_network(
    model: Model,
    *,
    is_owned: bool = False,
    has_room: Callable[[int], bool] = lambda num_bytes: True,
    kernels: str | None = None,
    is_exact: bool = True,
) -> tuple[Model | None, str]:
    """Return the model on the slots' own network, on the same weights; or None and why it cannot have one.

    If the run alone owns the model (`is_owned`), its weights are freed where they are packed, and restored from there;
    it then has one such network for good. `has_room` is asked about the bytes of copied weights. `kernels` are those
    that a run was started with; only the user can choose `ANY_INT8`. With `is_exact`, rows get the same bits in any
    batch if this machine supports it; `bits_of` says whether it does.
    """
    made = _found.setdefault(model.network, {})
    found = _at_hand(made, is_owned, (kernels, is_exact))
    if found is None:
        found = made[kernels, is_exact] = _make(model, is_owned, has_room, (kernels, is_exact))
    return (None, found) if isinstance(found, str) else (replace(found, checkpoint=model.checkpoint), "")


def bits_of(own: Model) -> str:
    """Return what is guaranteed about rows' bits on a network that `slot_network` built."""
    return _bits[own.network]


def _at_hand(made: dict[Kind, Model | str], is_owned: bool, kind: Kind) -> Model | str | None:
    """Return an earlier result that can be reused: for an owned model any network, else one of this kind."""
    if is_owned or kind in made:
        return made.get(kind, next(iter(made.values()), None))
    alike = (own for (_, is_exact), own in made.items() if isinstance(own, Model) and is_exact == kind[1])
    return next((own for own in alike if kernels_of(own.network) == kind[0]), None)


def _make(model: Model, is_owned: bool, has_room: Callable[[int], bool], kind: Kind) -> Model | str:
    """Build with compiled loops, with fused layers alone if these fail their trial, and else without.

    A model without slots gets its weights back.
    """
    found = why_no_slots(model.checkpoint.outline)
    for names in () if found else _ways(model, kind[0]):
        own, found = _try(model, is_owned, has_room, kind, names)
        if own:
            return own
    assert found
    return found


def _try(
    model: Model, is_owned: bool, has_room: Callable[[int], bool], kind: Kind, names: Names
) -> tuple[Model | None, str | None]:
    """Return the network, built and tried; or None and why it is wrong."""
    kernels, is_exact = kind
    own = _build(model, names, is_exact=is_exact)
    loaded = model.network if is_owned else None
    problem = None
    if kernels not in ALL_INT8:
        speed_up(own.network, loaded, has_room=has_room, kernels=kernels)
        problem = fix_bits(own.network) if is_exact else None
    if reason := why_slots_fail(model, own):
        del own  # also frees everything packed, except what is unpacked next
        unpack(model.network)
        return None, reason
    if kernels in ALL_INT8:  # after the trial, which compares with the weights as they were loaded
        speed_up(own.network, kernels=PLAIN)
        quantize_network(model, own.network, loaded, INT8_COMPILED if names else INT8)
        problem = fix_bits(own.network) if is_exact else None
    _bits[own.network] = find_bits(own, problem) if is_exact else bits_text("exactness is off")
    return own, None


def _ways(model: Model, kernels: str | None) -> list[Names]:
    """Return the kernels to try, in that order, for layers that can be fused: unfused ones come last.

    What is unsupported, or failed in an earlier trial, is left out.
    """
    ways: list[Names] = []
    is_large = model.network.num_parameters() >= LEAST_PARAMETERS
    pays = kernels in (*WITH_LOOPS, INT8_COMPILED, ANY_INT8) or (kernels is None and is_large)
    ways += [WITH_LOOPS] if pays and can_compile(model) else []
    has_blocks = kernels in (None, *WITH_LOOPS, *WITH_BLOCKS) and can_pack(model.device, model.dtype)
    ways += [WITH_BLOCKS] if has_blocks and not are_any_known_wrong(model, WITH_BLOCKS) else []
    return [*ways, ()]


def _build(model: Model, names: Names, *, is_exact: bool) -> Model:
    """Return the network with our attention, on the weights as they were loaded."""
    attends = any(rule.attends for rule in layer_rules(model.checkpoint.config))
    own = model.on_same_weights(ATTENTION if attends else None)
    if names:
        fuse_layers(own)
    if names == WITH_LOOPS:
        from batchgen.engines.compiled.network import compile_blocks

        compile_blocks(own)
    _see_last_column_only(own.network, model.checkpoint.config.get_text_config().num_hidden_layers)
    keep_latents(own.network, is_exact=is_exact)
    if limit := short_limit(model.checkpoint.config):
        rotate_by_row(own.network, limit)
    return own


def _see_last_column_only(network: nn.Module, num_layers: int) -> None:
    """Let the last layer's MLP compute only the last of T columns, because only its logits are read.

    Its output `[B, 1, H]` is added to all columns `[B, T, H]`: correct for the last one; the others are never read.
    """
    mlps = [module for name, module in network.named_modules() if name.endswith(".mlp")]
    if len(mlps) == num_layers:  # an MLP that takes more than hidden states may need all of their columns
        mlps[-1].register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1:],) if len(inputs) == 1 else inputs)
