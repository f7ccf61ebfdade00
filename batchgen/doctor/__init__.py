"""Examine what this machine and installation offer, and advise how to fix problems. Draws nothing.

A missing or broken part is a finding; it never stops the examination.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.doctor.advice import advise
from batchgen.doctor.conversation import examine_chat
from batchgen.doctor.facts import Diagnosis
from batchgen.doctor.installation import examine_installation, examine_models
from batchgen.doctor.machine import examine_machine, measure_gflops
from batchgen.doctor.network import examine_model
from batchgen.model import open_checkpoint
from batchgen.model.find import hub_answers

if TYPE_CHECKING:
    from batchgen.doctor.machine import Measure

__all__ = ["Diagnosis", "advise", "diagnose"]


def diagnose(
    device: str = "auto",
    model: str | None = None,
    revision: str | None = None,
    *,
    root: Path = Path("/"),
    measure: Measure = measure_gflops,
) -> Diagnosis:
    """Examine everything, `device` in detail, and how `model` runs and handles chats; `root` replaces `/`.

    Raises `UsageError` for an unknown device, `ModelError` for a device or model that does not exist.
    """
    checkpoint = open_checkpoint(model, revision=revision, weights=False) if model is not None else None
    chat = examine_chat(checkpoint) if checkpoint else None
    with ThreadPoolExecutor(1) as waiting:  # the Hub may be slow, and so is importing torch
        hub = waiting.submit(hub_answers)
        installation = examine_installation(root)
        machine = examine_machine(device, root, measure)
        models = examine_models()
        facts = examine_model(checkpoint, device) if checkpoint else None
        answers = False if hub.exception() else hub.result()
        return Diagnosis(installation, machine, models, hub_answers=answers, chat=chat, model=facts)
