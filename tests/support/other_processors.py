"""Loops compiled for another processor than this one."""

from __future__ import annotations

import os


def compile_loops(processor: str, features: str) -> None:
    """Compile in a new process, since Numba reads the processor's name once."""
    os.environ |= {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features}
    from batchgen.engines.compiled import products, prompts
    from batchgen.engines.compiled.attention import attention

    has_registers = "avx512f" in features
    attention("float32", 64, 1, has_cap=False, has_sinks=False, in_registers=has_registers)
    if has_registers:
        prompts.attention("float32", 64, 1, has_cap=False, has_sinks=False)
        products.multiply("float32", "float32", "", has_bias=False, adds=False)
