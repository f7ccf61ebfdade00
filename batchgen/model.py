"""Finds a model, checks it, loads its tokenizer and weights; chooses device and dtype.

Where a model may come from: the bundled folder, a local folder, the local Hugging Face cache, the Hub. Nothing of a
model is ever executed, only safetensors are read, and nothing of its generation_config is used but its eos tokens.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.errors import ModelError, NotCachedError, UsageError

if TYPE_CHECKING:
    import torch
    from huggingface_hub import ModelInfo
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parent / "bundled"
DEFAULT_MODEL = "gpt2"
DEFAULT_REPOSITORIES = ("openai-community/gpt2", "gpt2")  # the same model's new and old address
HUB_PATIENCE_S = 3.0
TOKENIZER_FILES = ["tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
CONFIG_FILES = ["config.json", "generation_config.json", *TOKENIZER_FILES]
WEIGHT_FILES = ["model*.safetensors", "model.safetensors.index.json"]
DTYPES = ("auto", "float32", "bfloat16", "float16")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """All that can be known of a model without its weights."""

    name: str
    folder: Path
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]

    @cached_property
    def pad_token_id(self) -> int:
        """eos serves as pad: it is masked, so any token would do (0 where a model has no eos)."""
        own = self.tokenizer.eos_token_id
        return own if own is not None else min(self.eos_token_ids, default=0)

    @cached_property
    def n_positions(self) -> int | None:
        """The most tokens a row may have, prompt and new ones; None where the architecture sets no limit."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None


@dataclass(frozen=True)
class Model:
    """A checkpoint with its weights on a device."""

    checkpoint: Checkpoint
    network: PreTrainedModel
    device: torch.device
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def takes_position_ids(self) -> bool:
        return "position_ids" in self._forward_parameters

    @cached_property
    def takes_logits_to_keep(self) -> bool:
        return "logits_to_keep" in self._forward_parameters

    @cached_property
    def _forward_parameters(self) -> set[str]:
        return set(inspect.signature(self.network.forward).parameters)


def open_model(
    name: str | None = None,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    say: Say = lambda line: None,
) -> Model:
    """Finds, checks and loads a model; the three steps below. Raises `ModelError` or `UsageError`."""
    return load_model(open_checkpoint(name, revision=revision, say=say), device, dtype)


def open_checkpoint(
    name: str | None = None, *, revision: str | None = None, weights: bool = True, say: Say = lambda line: None
) -> Checkpoint:
    """Finds a model and reads all but its weights."""
    return read_checkpoint(*find_model(name, revision, weights=weights, say=say))


def find_model(
    name: str | None, revision: str | None = None, *, weights: bool = True, say: Say = lambda line: None
) -> tuple[str, Path]:
    """The model's name as outputs will state it, and the folder with its files.

    `name` is `bundled`, a folder or a Hub id; None is GPT-2 from the cache or the Hub, else the bundled model. What
    takes time or falls back is told through `say` first. Raises `ModelError`.
    """
    if name is None and revision is None:
        return _find_default(weights, say)
    name = name or DEFAULT_MODEL
    if name == BUNDLED or Path(name).expanduser().exists() or not _is_repository(name):
        if revision:
            raise UsageError(f"--revision names a version on the Hub; {name} is not a Hub model")
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
            "warning: GPT-2 is not in the local cache and the Hub does not answer; using the small bundled model, "
            "which writes simple stories (--model bundled hides this line)"
        )
        return BUNDLED, BUNDLED_FOLDER


def _is_repository(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII) is not None


def _check_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        reason = "is a file" if folder.exists() else "is neither a folder nor a Hub id"
        raise ModelError(f"--model {name} {reason}: give a model folder, a Hub id such as gpt2, or bundled")
    return folder


def _find_cached(repositories: tuple[str, ...], revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    for repository in repositories:
        try:
            folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:  # noqa: BLE001 - whatever keeps the cache from answering, it does not have the model
            continue
        if (folder / "config.json").exists() and (not weights or any(folder.glob("*.safetensors*"))):
            return folder
    raise NotCachedError(f"{repositories[0]} is not in the local cache")


def _download(repository: str, revision: str | None, weights: bool, say: Say) -> Path:
    from huggingface_hub import snapshot_download

    info = _ask_hub(repository, revision)
    patterns = CONFIG_FILES + (WEIGHT_FILES if weights else [])
    size_bytes = _download_bytes(info, patterns)
    if weights:
        say(f"downloading {repository} ({size_bytes / 1e6:,.0f} MB) to the local cache; --model bundled needs nothing")
    with _quiet():
        try:
            folder = snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
        except Exception as error:  # noqa: BLE001 - any failure of the download is the same news to the user
            raise ModelError(f"the download of {repository} failed: {_first_line(error)}; run again to go on") from None
    return Path(folder)


def _download_bytes(info: ModelInfo, patterns: list[str]) -> int:
    from huggingface_hub.utils import filter_repo_objects

    files = info.siblings or []
    wanted = filter_repo_objects(files, allow_patterns=patterns, ignore_patterns=["*/*"], key=lambda f: f.rfilename)
    return sum(file.size or 0 for file in wanted)


def _ask_hub(repository: str, revision: str | None) -> ModelInfo:
    """What the Hub says of a repository, within `HUB_PATIENCE_S` (its name look-up included); else `ModelError`."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    mend = "give a local folder, or --model bundled"
    if constants.is_offline_mode():
        raise ModelError(f"model {repository} is not in the local cache and HF_HUB_OFFLINE is set: {mend}")
    answers: list[ModelInfo | Exception] = []

    def ask() -> None:
        try:
            answers.append(
                HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=HUB_PATIENCE_S)
            )
        except Exception as error:  # noqa: BLE001 - judged below, in the waiting thread
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE_S)
    answer = answers[0] if answers else TimeoutError()
    if isinstance(answer, GatedRepoError):
        raise ModelError(f"model {repository} asks for permission: accept its terms on the Hub and set HF_TOKEN")
    if isinstance(answer, RevisionNotFoundError):
        raise ModelError(f"model {repository} has no revision {revision}")
    if isinstance(answer, RepositoryNotFoundError):
        raise ModelError(f"there is no model {repository} on the Hub (or it is private), nor a folder of that name")
    if isinstance(answer, Exception):
        raise ModelError(f"model {repository} is not in the local cache and the Hub does not answer: {mend}")
    return answer


def read_checkpoint(name: str, folder: Path) -> Checkpoint:
    """Config, tokenizer and eos tokens of a found model; refuses what is not a decoder-only language model."""
    from transformers import AutoConfig, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: it is not a model folder")
    with _quiet(), _one_line(name, folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    _check_architecture(name, config)
    if not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json): save the tokenizer beside the model")
    with _quiet(), _one_line(name, folder):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, padding_side="left"
        )
    vocab_size = config.get_text_config().vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}: they do not belong together"
        )
    return Checkpoint(name, folder, config, tokenizer, _eos_token_ids(folder, config, tokenizer))


def _check_architecture(name: str, config: PretrainedConfig) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    architecture = (config.architectures or [type(config).__name__])[0]
    mend = "batchgen runs decoder-only language models, such as gpt2"
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"model {name} is an encoder-decoder model ({architecture}): {mend}")
    if config.model_type not in CAUSAL or (config.architectures and architecture not in _flatten(CAUSAL.values())):
        raise ModelError(f"model {name} is not a causal language model ({architecture}): {mend}")


def _flatten(names: Any) -> set[str]:
    return {name for entry in names for name in ((entry,) if isinstance(entry, str) else entry)}


def _eos_token_ids(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The union of what tokenizer, config and generation_config name; nothing else is read from the latter."""
    named: list[object] = [tokenizer.eos_token_id, getattr(config.get_text_config(), "eos_token_id", None)]
    try:
        generation_config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        named.append(generation_config.get("eos_token_id"))
    except (OSError, ValueError, AttributeError):
        pass
    ids = [i for entry in named for i in (entry if isinstance(entry, list) else [entry])]
    return frozenset(i for i in ids if isinstance(i, int) and 0 <= i < config.get_text_config().vocab_size)


def load_model(checkpoint: Checkpoint, device: str = "auto", dtype: str = "auto") -> Model:
    """The checkpoint with its weights on `device`; missing or misshaped weights are refused."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    on = choose_device(device)
    as_dtype = choose_dtype(dtype, on, checkpoint.config)
    folder = checkpoint.folder
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors: batchgen reads no other weights (pickles can run code)")
    with _quiet(), _one_line(checkpoint.name, folder):
        network, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=as_dtype,
            attn_implementation=_attention(checkpoint.config),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if keys := loading.get(problem):
            what = problem.replace("_keys", " weights").replace("_msgs", "s")
            raise ModelError(f"{folder} does not hold the whole model: {len(keys)} {what}, first {sorted(map(str, keys))[0]}")
    network.generation_config = GenerationConfig()  # what the checkpoint asks for must not leak into `generate`
    return Model(checkpoint, network.eval().to(on), on, as_dtype)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU."""
    import torch

    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is not a device: use auto, cpu, cuda, cuda:1 or mps") from None
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps)}.get(device.type, 0)
    if (device.index or 0) >= present:
        raise ModelError(f"--device {name} is not on this machine: use --device auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device, config: PretrainedConfig) -> torch.dtype:
    """`auto` is float32 on the CPU whatever the file stores, the checkpoint's own dtype on an accelerator."""
    import torch

    if name not in DTYPES:
        raise UsageError(f"--dtype {name} is not one of {', '.join(DTYPES)}")
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    stored = getattr(config.get_text_config(), "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _attention(config: PretrainedConfig) -> str:
    """Always named, since a config may ask for a kernel from the Hub."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa else "eager"


@contextmanager
def _one_line(name: str, folder: Path) -> Iterator[None]:
    """Turns whatever a broken or hostile checkpoint makes transformers raise into one `ModelError`."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the library raises nearly anything
        if "trust_remote_code" in str(error):
            raise ModelError(f"model {name} needs code of its own, which batchgen never runs") from None
        raise ModelError(f"model {name} cannot be loaded from {folder}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the Hub's and transformers' own bars, logs and warnings."""
    import warnings

    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    had_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    disabled_below = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled_below)
        if had_bars[0]:
            transformers_logging.enable_progress_bar()
        if had_bars[1]:
            enable_progress_bars()
