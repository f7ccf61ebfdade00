"""Find the folder of a model by its name: bundled, a local folder, the Hugging Face cache, or the Hub."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.errors import ModelError, NotCachedError, UsageError, first_line, name_in_error
from batchgen.model.nearby import near_model
from batchgen.model.quiet import quiet
from batchgen.model.stored_integers import stored_scheme

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.hf_api import RepoSibling

# The Hub's client sends telemetry by itself; it reads this variable on its first import.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parent.parent / "bundled"
DEFAULT_MODEL = "gpt2"
DEFAULT_REPOSITORIES = ("openai-community/gpt2", "gpt2")  # the new and the old address of the same model
HUB_PATIENCE_S = 3.0
MORE_TEMPLATES = "additional_chat_templates/*.jinja"  # the only files in a subfolder
TOKENIZER_FILES = ["tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
                   "chat_template.jinja", "chat_template.json", "processor_config.json", MORE_TEMPLATES]  # fmt: skip
CONFIG_FILES = ["config.json", "generation_config.json", *TOKENIZER_FILES]
GGUF = ".gguf"
WEIGHT_FILES = ["model*.safetensors", "model.safetensors.index.json"]

Say = Callable[[str], None]


def find_model(
    name: str | None, revision: str | None = None, *, weights: bool = True, say: Say = lambda line: None
) -> tuple[str, Path]:
    """Return the model's name as outputs will state it, and the folder with its files.

    `name` is `bundled`, a folder or a Hub id; None means GPT-2 from the cache or the Hub, otherwise the bundled model.
    Slow steps and fallbacks are announced through `say` first. Raises `ModelError`, or `UsageError` for a `revision`
    of anything but a Hub model.
    """
    if name is None and revision is None:
        return _find_default(weights, say)
    name = DEFAULT_MODEL if name is None else name
    if name == BUNDLED or _exists(name) or name.lower().endswith(GGUF) or not _is_repository(name):
        if revision:
            raise UsageError(f"--revision only works with a Hub model; {name} is not a Hub model")
        return name, BUNDLED_FOLDER if name == BUNDLED else _check_folder(name)
    repositories = DEFAULT_REPOSITORIES if name in DEFAULT_REPOSITORIES else (name,)
    try:
        return name, _find_cached(repositories, revision, weights)
    except NotCachedError:
        return name, _download(repositories[0], revision, weights, say)


def _find_default(weights: bool, say: Say) -> tuple[str, Path]:
    try:
        return DEFAULT_MODEL, _find_cached(DEFAULT_REPOSITORIES, None, weights)
    except NotCachedError:
        pass
    try:
        return DEFAULT_MODEL, _download(DEFAULT_REPOSITORIES[0], None, weights, say)
    except ModelError:
        say(
            "warning: gpt2 is not in the local cache and the Hub cannot be reached: using the small bundled model, "
            "which writes simple stories (to hide this warning, use --model bundled)"
        )
        return BUNDLED, BUNDLED_FOLDER


def _is_repository(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _to_path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # the home of a user who does not exist
        return Path(name)


def _exists(name: str) -> bool:
    try:
        return _to_path(name).exists()
    except OSError:  # a name longer than any file's
        return False


def _check_folder(name: str) -> Path:
    if not name:
        raise ModelError("--model has an empty name: is a shell variable unset?")
    folder = _to_path(name)
    if not _exists(name) or not folder.is_dir():
        if name.lower().endswith(GGUF):
            fix = "give the folder or Hub id of the model that it was made from, in safetensors"
            raise ModelError(f"--model {name_in_error(name)} is a GGUF file, which is not supported: {fix}")
        reason = "is a file" if _exists(name) else "is neither a folder nor a Hub id"
        fix = f"{_meant(name)}give a model folder, a Hub id such as gpt2, or bundled"
        raise ModelError(f"--model {name_in_error(name)} {reason}: {fix}")
    return folder


def _meant(name: str) -> str:
    """The start of the suggested fix, naming the model that was probably meant; empty if there is no close match."""
    from huggingface_hub import constants

    near = near_model(name, Path(constants.HF_HUB_CACHE))
    return f"did you mean --model {near}? Otherwise, " if near else ""


def _find_cached(repositories: tuple[str, ...], revision: str | None, weights: bool) -> Path:
    from huggingface_hub import try_to_load_from_cache

    for repository in repositories:
        config = try_to_load_from_cache(repository, "config.json", revision=revision)
        if not isinstance(config, str):
            continue
        folder = Path(config).parent
        if has_tokenizer(folder) and (not weights or _has_weights(folder)):
            return folder
    raise NotCachedError(f"{repositories[0]} is not in the local cache")


def find_in_cache(*repositories: str) -> Path | None:
    """The folder of the first repository that is complete in the local cache, weights included; never asks the Hub."""
    try:
        return _find_cached(repositories, None, weights=True)
    except NotCachedError:
        return None


def has_tokenizer(folder: Path) -> bool:
    return any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))


def _has_weights(folder: Path) -> bool:
    """Whether a snapshot has all its weights: a download may have been interrupted."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return any(folder.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / str(shard)).exists() for shard in shards)


def _download(repository: str, revision: str | None, weights: bool, say: Say) -> Path:
    info = _ask_hub(repository, revision)
    patterns = CONFIG_FILES + (WEIGHT_FILES if weights else [])
    wanted = _wanted(info, patterns)
    size_bytes = sum(file.size or 0 for file in wanted)
    if weights:  # everything else is a few kilobytes
        stored_scheme(repository, _fetch(repository, revision, ["config.json"]))  # fails if no run can read it
        say(f"downloading {repository} ({size_bytes / 1e6:,.0f} MB) to the local cache; --model bundled needs none")
    return _fetch(repository, revision, [escape(file.rfilename) for file in wanted])


def _fetch(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """Download the files that match and return the folder of the cached snapshot."""
    from huggingface_hub import snapshot_download

    with quiet():
        try:
            return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
        except Exception as error:  # noqa: BLE001 - any failed download is the same to the user
            raise ModelError(
                f"the download of {repository} failed: {first_line(error)}; to continue, run the command again"
            ) from None


def _wanted(info: ModelInfo, patterns: list[str]) -> list[RepoSibling]:
    """The files of a repository that match; in subfolders, only additional chat templates do."""
    return [file for file in info.siblings or [] if any(_is_at(file.rfilename, pattern) for pattern in patterns)]


def _is_at(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")


def _ask_hub(repository: str, revision: str | None) -> ModelInfo:
    """Ask the Hub about a repository, for at most `HUB_PATIENCE_S`, DNS included. Raises `ModelError`."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    fix = f"{_meant(repository)}give a local folder, or --model bundled"
    if constants.is_offline_mode():
        raise ModelError(f"model {repository} is not in the local cache and HF_HUB_OFFLINE is set: {fix}")
    answer = _ask_patiently(
        lambda: HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=HUB_PATIENCE_S)
    )
    if isinstance(answer, GatedRepoError):
        raise ModelError(f"model {repository} requires permission: accept its terms on the Hub and set HF_TOKEN")
    if isinstance(answer, RevisionNotFoundError):
        raise ModelError(f"model {repository} has no revision {revision}")
    if isinstance(answer, RepositoryNotFoundError):
        near = near_model(repository, Path(constants.HF_HUB_CACHE))
        hint = f": did you mean --model {near}?" if near else ""
        raise ModelError(
            f"there is no model {repository} on the Hub (or it is private), and no folder of that name{hint}"
        )
    if isinstance(answer, Exception):
        raise ModelError(f"model {repository} is not in the local cache and the Hub does not answer: {fix}")
    return answer


def hub_answers() -> bool | None:
    """Whether the Hub answers a question about GPT-2 within `HUB_PATIENCE_S`; None in offline mode."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.is_offline_mode():
        return None
    answer = _ask_patiently(lambda: HfApi().model_info(DEFAULT_REPOSITORIES[0], timeout=HUB_PATIENCE_S))
    return isinstance(answer, RepositoryNotFoundError) or not isinstance(answer, Exception)


def _ask_patiently(ask: Callable[[], ModelInfo]) -> ModelInfo | Exception:
    """What `ask` returns or raises, or a `TimeoutError` after `HUB_PATIENCE_S`, even if a DNS lookup hangs."""
    answers: list[ModelInfo | Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001 - judged by the waiting thread
            answers.append(error)

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE_S)
    return answers[0] if answers else TimeoutError()
