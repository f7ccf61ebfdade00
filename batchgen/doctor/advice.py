"""Facts to advice: one line for each thing that is off, with its mend. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from batchgen.doctor.facts import Diagnosis, Installation, Machine, Processor
from batchgen.model.private import TRIED

# A rate between these, in units of float32's, is no reason to choose either.
SLOWER, FASTER = 0.9, 1.2
LOW_MEMORY_BYTES = 1 << 30
# A limit that leaves less than this share of the machine's memory is worth a line.
TIGHT_SHARE = 0.5
# How a limit is lifted, by the first word of its name; what has no line here is the machine's own memory.
MENDS = {
    "cgroup": "raise the container's or the service's limit",
    "RLIMIT_AS": "raise it with ulimit -v",
    "--memory": "raise it",
}


def advise(diagnosis: Diagnosis) -> list[str]:
    """What a knowledgeable person would say of these facts; nothing where all is well."""
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
            yield f"{version.name} {version.installed} is older than batchgen needs: pip install '{wanted}'"
    if installation.gone_names and not installation.torch_problem:
        names = ", ".join(installation.gone_names)
        yield (
            f"internals that batchgen uses are gone from the installed libraries ({names}): "
            f"some features are slower or fail; use {TRIED}"
        )


def _on_torch(installation: Installation, machine: Machine) -> Iterator[str]:
    build = installation.torch_build
    if installation.torch_problem:
        yield f"torch cannot be imported ({installation.torch_problem}): install it again"
    elif machine.accelerators:
        return
    elif build:
        yield f"torch is built for {build} but finds no GPU: if there is one, look at its driver and *_VISIBLE_DEVICES"
    elif installation.has_nvidia:
        yield "an NVIDIA GPU is here, but torch is built for the CPU alone: install a CUDA build (pytorch.org)"


def _on_dtypes(machine: Machine) -> Iterator[str]:
    ratio = machine.ratio("bfloat16")
    if ratio and ratio < SLOWER:
        yield f"bfloat16 multiplies matrices at {ratio:.2g} of float32's rate here: keep to --dtype float32"
    elif ratio and ratio > FASTER:
        hint = "a whole run gains less" if machine.bfloat16_gain else "batchgen bench tells more"
        yield (
            f"bfloat16 multiplies matrices {ratio:.1f} times as fast as float32 here ({hint}): "
            "--dtype bfloat16 is quicker, but changes some tokens"
        )


def _on_threads(processor: Processor) -> Iterator[str]:
    threads, cores = processor.torch_threads, processor.physical_cores
    if processor.threads_set_by and threads and cores and threads < cores:
        yield f"torch uses {threads} of {cores} cores: unset {processor.threads_set_by}"


def _on_memory(machine: Machine) -> Iterator[str]:
    if not machine.bounds:
        return
    tightest = machine.bounds[0]
    limit = next((word for word in MENDS if tightest.name.startswith(word)), None)
    share = tightest.available_bytes / machine.ram_bytes if machine.ram_bytes else 1
    mend = MENDS[limit] if limit else "close other programs, or take a smaller model"
    if tightest.available_bytes < LOW_MEMORY_BYTES:
        yield f"less than 1 GiB of memory is left by {tightest.name}: {mend}"
    elif limit and share < TIGHT_SHARE:
        yield f"{tightest.name} leaves {share:.0%} of this machine's memory: {mend} if that is not meant"


def _on_models(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.models.has_gpt2 or diagnosis.hub_answers:
        return
    offline = diagnosis.hub_answers is None
    why = "HF_HUB_OFFLINE is set" if offline else "the Hub does not answer"
    mend = "unset it once" if offline else "connect once"
    yield f"gpt2 is not in the cache and {why}: without --model the small bundled one runs; {mend}, or give a --model"
