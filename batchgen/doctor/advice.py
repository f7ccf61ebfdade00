"""Turn facts into advice: one line for each problem, with its fix. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from batchgen.doctor.facts import Diagnosis, Installation, Machine, Processor
from batchgen.model.private import TRIED

# A rate between these, relative to float32's, is no reason to prefer either dtype.
SLOWER, FASTER = 0.9, 1.2
LOW_MEMORY_BYTES = 1 << 30
# A limit that leaves less than this share of the machine's memory is reported.
TIGHT_SHARE = 0.5
# How to raise a limit, by the first word of its name; any other bound is the machine's own memory.
FIXES = {
    "cgroup": "raise the container's or the service's limit",
    "RLIMIT_AS": "raise it with ulimit -v",
    "--memory": "raise it",
}


def advise(diagnosis: Diagnosis) -> list[str]:
    """The advice that an expert would give on these facts; empty if everything is fine."""
    return [
        *_on_versions(diagnosis.installation),
        *_on_torch(diagnosis.installation, diagnosis.machine),
        *_on_dtypes(diagnosis.machine),
        *_on_threads(diagnosis.machine.processor),
        *_on_memory(diagnosis.machine),
        *_on_models(diagnosis),
    ]


def _on_versions(installation: Installation) -> Iterator[str]:
    for version in installation.versions:
        wanted = f"{version.name}>={version.floor}" if version.floor else version.name
        if version.installed is None:
            yield f"{version.name} is not installed: pip install '{wanted}'"
        elif version.is_old:
            yield f"{version.name} {version.installed} is too old for batchgen: pip install '{wanted}'"
    if installation.gone_names and not installation.torch_problem:
        names = ", ".join(installation.gone_names)
        yield (
            f"the installed libraries no longer have internals that batchgen uses ({names}): "
            f"some features are slower or fail; use {TRIED}"
        )


def _on_torch(installation: Installation, machine: Machine) -> Iterator[str]:
    build = installation.torch_build
    if installation.torch_problem:
        yield f"torch cannot be imported ({installation.torch_problem}): install it again"
    elif machine.accelerators:
        return
    elif build:
        yield f"torch is built for {build} but finds no GPU: if there is one, check its driver and *_VISIBLE_DEVICES"
    elif installation.has_nvidia:
        yield "this machine has an NVIDIA GPU, but torch is a CPU-only build: install a CUDA build (pytorch.org)"


def _on_dtypes(machine: Machine) -> Iterator[str]:
    ratio = machine.ratio("bfloat16")
    if ratio and ratio < SLOWER:
        yield f"bfloat16 multiplies matrices at {ratio:.2g} of float32's speed here: use --dtype float32"
    elif ratio and ratio > FASTER:
        hint = "a complete run gains less" if machine.bfloat16_gain else "run batchgen bench for details"
        yield (
            f"bfloat16 multiplies matrices {ratio:.1f} times as fast as float32 here ({hint}): "
            "--dtype bfloat16 is faster, but changes some tokens"
        )


def _on_threads(processor: Processor) -> Iterator[str]:
    threads, cores = processor.torch_threads, processor.physical_cores
    if processor.threads_set_by and threads and cores and threads < cores:
        yield f"torch uses {threads} of {cores} cores: unset {processor.threads_set_by}"


def _on_memory(machine: Machine) -> Iterator[str]:
    if not machine.bounds:
        return
    tightest = machine.bounds[0]
    limit = next((word for word in FIXES if tightest.name.startswith(word)), None)
    share = tightest.available_bytes / machine.ram_bytes if machine.ram_bytes else 1
    fix = FIXES[limit] if limit else "close other programs, or use a smaller model"
    if tightest.available_bytes < LOW_MEMORY_BYTES:
        yield f"less than 1 GiB of memory is left by {tightest.name}: {fix}"
    elif limit and share < TIGHT_SHARE:
        yield f"{tightest.name} leaves {share:.0%} of this machine's memory: {fix} if that is not intended"


def _on_models(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.models.has_gpt2 or diagnosis.hub_answers:
        return
    offline = diagnosis.hub_answers is None
    why = "HF_HUB_OFFLINE is set" if offline else "the Hub does not answer"
    fix = "unset it once" if offline else "connect once"
    yield f"gpt2 is not in the cache and {why}: without --model, the bundled model is used; {fix}, or give --model"
