"""Examine versions, and the models available without a network."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.doctor.facts import Installation, ModelAtHand, Models, Version, or_else
from batchgen.errors import first_line
from batchgen.model.find import BUNDLED, BUNDLED_FOLDER, DEFAULT_REPOSITORIES, find_in_cache
from batchgen.model.private import missing_names

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "typer", "rich", "psutil")
CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")


def examine_installation(root: Path) -> Installation:
    """Versions and builds. Libraries are looked up by their metadata; only torch is imported."""
    return Installation(
        versions=tuple(_versions()),
        python=platform.python_version(),
        platform=platform.platform(),
        torch_problem=_import_torch(),
        torch_build=_torch_build(),
        has_nvidia=(root / "proc/driver/nvidia/version").exists(),
        gone_names=_gone_names(),
    )


def examine_models() -> Models:
    return Models(
        bundled=_bundled(),
        has_gpt2=_has_gpt2(),
        cached=_cached(),
        hf_home=_hf_home(),
    )


def _versions() -> Iterator[Version]:
    from batchgen import __version__

    yield Version("batchgen", __version__)
    floors = _floors()
    for name in LIBRARIES:
        installed, floor = _installed(name), floors.get(name)
        yield Version(name, installed, floor, is_old=_is_below(installed, floor))


@or_else(None)
def _installed(name: str) -> str:
    from importlib.metadata import version

    return version(name)


@or_else({})
def _floors() -> dict[str, str]:
    """The lowest versions that batchgen's own metadata requires."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires("batchgen") or []]
    return {
        requirement.name: specifier.version
        for requirement in wanted
        if requirement.marker is None
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }


@or_else(False)
def _is_below(installed: str | None, floor: str | None) -> bool:
    from packaging.version import Version as Parsed

    return bool(installed and floor) and Parsed(str(installed)) < Parsed(str(floor))


def _import_torch() -> str | None:
    """Import torch; return what goes wrong in one line, or None."""
    try:
        import torch  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a broken library raises almost anything
        return first_line(error)
    return None


@or_else(None)
def _torch_build() -> str | None:
    import torch

    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else None


@or_else(())
def _gone_names() -> tuple[str, ...]:
    return tuple(missing_names())


@or_else(None)
def _bundled() -> ModelAtHand:
    from safetensors import safe_open

    size_bytes = sum(file.stat().st_size for file in BUNDLED_FOLDER.iterdir())
    with safe_open(BUNDLED_FOLDER / "model.safetensors", "np") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return ModelAtHand(BUNDLED, size_bytes, parameters)


@or_else(False)
def _has_gpt2() -> bool:
    return find_in_cache(*DEFAULT_REPOSITORIES) is not None


@or_else(())
def _cached() -> tuple[ModelAtHand, ...]:
    """Causal language models that are complete in the Hugging Face cache, sorted by name."""
    from huggingface_hub import scan_cache_dir

    models = [ModelAtHand(repo.repo_id, repo.size_on_disk) for repo in scan_cache_dir().repos if _is_at_hand(repo)]
    return tuple(sorted(models, key=lambda model: model.name))


@or_else(False)
def _is_at_hand(repo: CachedRepoInfo) -> bool:
    folder = find_in_cache(repo.repo_id) if repo.repo_type == "model" else None
    if folder is None:
        return False
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return any(name.endswith(CAUSAL_ENDINGS) for name in config["architectures"])


@or_else(None)
def _hf_home() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HOME)
