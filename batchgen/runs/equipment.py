"""What a run computes with: the model's files, devices and dtype, then its weights and an engine, or a worker pool."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from batchgen.engines import Engine, make_engine, make_scoring_engine
from batchgen.engines.int8.support import check_int8
from batchgen.engines.pool.devices import choose_devices, num_threads
from batchgen.engines.pool.engine import make_pool
from batchgen.engines.ready import refuse_other_engine
from batchgen.engines.sampling.trying import check_constraint
from batchgen.errors import UsageError
from batchgen.machine.process import reuse_blocks
from batchgen.model import Checkpoint, Model, open_checkpoint
from batchgen.model.chat import Chat, open_chat
from batchgen.model.chat.template import START
from batchgen.model.checks import check_weights
from batchgen.model.padding import check_named_tokens
from batchgen.model.weights import choose_dtype, load_model
from batchgen.records import EngineChoice
from batchgen.runs.job import Job
from batchgen.runs.manifest import Facts, Manifest, model_facts
from batchgen.runs.observer import Observer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Equipment:
    """What rows run on. With several workers, one per entry of `devices`, only the workers load the weights.

    `begun` describes the engine of the interrupted run, if this run resumes one.
    """

    checkpoint: Checkpoint
    devices: tuple[torch.device, ...]
    dtype: str
    chat: Chat
    model: Model | None = None
    begun: EngineChoice | None = None

    @property
    def device(self) -> str:
        """The names of the devices, without duplicates."""
        return ",".join(dict.fromkeys(map(str, self.devices)))

    @property
    def num_threads(self) -> int | None:
        """Threads of this process, or of each worker; None on an accelerator."""
        if self.devices[0].type != "cpu":
            return None
        if self.model is None:
            return num_threads(len(self.devices), self.begun)
        import torch

        return torch.get_num_threads()


def find_equipment(job: Job, observer: Observer, started: datetime = START) -> Equipment:
    """Find everything except the weights."""
    choice = job.model
    generates = job.scoring is None
    if model := choice.loaded:
        check_int8(job.engine, model.device.type, model.checkpoint.outline, job.sampling.num_beams, generates=generates)
        if job.engine.workers not in (None, 1):
            raise UsageError("workers load the model themselves: pass its name, not a Model")
        chat = open_chat(model.checkpoint, job.chat, say=observer.say, now=started)
        return Equipment(model.checkpoint, (model.device,), model.dtype_name, chat, model)
    devices = choose_devices(choice.device, job.engine.workers)
    checkpoint = open_checkpoint(choice.name, revision=choice.revision, say=observer.say)
    check_int8(job.engine, devices[0].type, checkpoint.outline, job.sampling.num_beams, generates=generates)
    chat = open_chat(checkpoint, job.chat, say=observer.say, now=started)
    dtype = choose_dtype(choice.dtype, devices[0].type, checkpoint.outline)
    return Equipment(checkpoint, tuple(devices), dtype, chat)


def made_of(job: Job, found: Equipment) -> dict[str, Facts]:
    """Return what the run's results depend on besides its input. Raises if the weights must not be read."""
    check_weights(found.checkpoint.folder)  # before they are read to be hashed
    options = {**job.options, "--dtype": found.dtype, "chat_template_sha256": found.chat.digest}
    return {"model": model_facts(found.checkpoint), "options": options}


def load_equipment(job: Job, manifest: Manifest, observer: Observer) -> Equipment:
    """Load the model. A run started with another model or other options is refused before the weights are loaded."""
    check_constraint(job.sampling)
    found = find_equipment(job, observer, manifest.started)
    check_named_tokens(job.sampling, found.checkpoint.vocab_size)
    if job.is_noted:
        manifest.begin(found.device, observer.say, command=job.command, **made_of(job, found))
        # Stored rows have the model's name from the start of the run.
        found = replace(found, checkpoint=replace(found.checkpoint, name=manifest.facts["model"]["model"]))
        found = replace(found, begun=manifest.engine)
        refuse_other_engine(found.begun, job.engine, found.dtype)
        if job.owns_process:
            _take_threads(found)
    if found.model or len(found.devices) > 1:
        return found
    return replace(found, model=load_model(found.checkpoint, str(found.devices[0]), found.dtype, job.engine.memory))


def _take_threads(found: Equipment) -> None:
    """Use as many threads as the run was started with, if this machine has enough CPUs."""
    import torch

    begun = found.begun
    if begun and begun.threads and found.devices[0].type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(num_threads(len(found.devices), begun))


def make_run_engine(job: Job, equipment: Equipment, manifest: Manifest, observer: Observer) -> Engine:
    """Make the engine that the job asks for, on the loaded model, or in one process per device."""
    with observer.waiting("preparing the engine (a model's first run on this machine takes longest)"):
        return _make_engine(job, equipment, manifest, observer)


def _make_engine(job: Job, equipment: Equipment, manifest: Manifest, observer: Observer) -> Engine:
    model, beams = equipment.model, job.sampling.num_beams
    if model is None:
        return make_pool(
            equipment.checkpoint,
            list(equipment.devices),
            equipment.dtype,
            job.engine,
            num_beams=beams,
            scores=job.scoring is not None,
            begun=equipment.begun,
            agree=manifest.agree,
            say=observer.say,
        )
    is_owned = job.model.loaded is None
    heap = reuse_blocks if job.owns_process else _leave_heap
    if job.scoring:
        return make_scoring_engine(
            model,
            job.engine,
            is_owned=is_owned,
            begun=equipment.begun,
            agree=manifest.agree,
            reuse_blocks=heap,
            say=observer.say,
        )
    return make_engine(
        model,
        job.engine,
        num_beams=beams,
        is_owned=is_owned,
        begun=equipment.begun,
        agree=manifest.agree,
        reuse_blocks=heap,
        say=observer.say,
    )


def _leave_heap(is_plenty: bool) -> None:
    """Do nothing: a library must not change how its caller's process allocates memory."""
