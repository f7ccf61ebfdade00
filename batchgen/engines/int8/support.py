"""Whether 8-bit integers are supported, decided before any weight is loaded; if not, one line says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.errors import UsageError, parameter
from batchgen.records import EngineOptions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from batchgen.model.config_view import ConfigView

INT8 = "int8"
INT8_COMPILED = "int8, compiled"  # with loops of `compiled`
ANY_INT8 = "any int8"  # whichever of these is faster
ALL_INT8 = (INT8, INT8_COMPILED, ANY_INT8)


def why_no_int8(device_type: str) -> str | None:
    """Return why this machine cannot multiply 8-bit integers fast and exactly; None if it can."""
    from batchgen.model.private import has_int8_linear, has_vnni

    if device_type != "cpu":
        return "8-bit products run on a CPU only: give --device cpu"
    if not has_vnni():
        return "this processor has no AVX512-VNNI, without which sums of 8-bit products overflow"
    return None if has_int8_linear() else "this build of torch has no 8-bit products of oneDNN"


def check_int8(
    options: EngineOptions,
    device_type: str,
    config: ConfigView | PretrainedConfig,
    num_beams: int = 1,
    *,
    generates: bool = True,
) -> None:
    """Raise `UsageError` if `options` ask for 8-bit integers and these are not supported; needs no weights."""
    if options.quantize is None:
        return
    from batchgen.engines.choice import choose_engine

    if reason := why_no_int8(device_type):
        raise UsageError(f"--quantize {options.quantize} is not supported here: {reason}")
    if generates:
        name, reason = choose_engine(options.engine, config, num_beams)
        if name != "continuous":
            reason = reason or "engine reference runs the weights as they were loaded"
            raise UsageError(f"--quantize {options.quantize} needs engine continuous: {reason}; {leave_out()}")


def leave_out() -> str:
    return f"leave out {parameter('quantize')}"
