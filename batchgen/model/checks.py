"""Checks of a model folder before any library reads it: irregular files, absurd sizes, unsupported weights.

A library would wait for a FIFO, read a device forever, and build a list of a billion layers before it runs out of
memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from batchgen.errors import ModelError
from batchgen.text import size_text

MIB = 2**20
# Many times larger than in the largest known models.
MOST_CONFIG_BYTES, MOST_TOKENIZER_BYTES = 16 * MIB, 256 * MIB
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILES = ("tokenizer.json", "added_tokens.json", "vocab.json")
MOST_PARTS = {
    "layers": (re.compile(r"^(n|num)_(\w+_)?layers?$|layers$|^attention_types$"), 1_000),
    "experts": (re.compile(r"experts$"), 10_000),
    "labels": (re.compile(r"^num_labels$"), 100_000),
}
HEADS = ("num_attention_heads", "num_key_value_heads")
INDEX = "model.safetensors.index.json"


def check_files(folder: Path) -> None:
    """Raise `ModelError` for anything but regular files, and for configs or tokenizers larger than any model's."""
    for path in [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise ModelError(f"{path} is not a regular file: a model folder holds files only")
        if path.is_file() and path.suffix != ".safetensors":
            _check_size(path)


def _check_size(path: Path) -> None:
    most = MOST_CONFIG_BYTES if path.name in CONFIGS or path.suffix == ".jinja" else MOST_TOKENIZER_BYTES
    is_read = path.suffix in (".json", ".jinja", ".txt", ".model")
    if is_read and (size := path.stat().st_size) > most:
        raise ModelError(f"{path} has {size:,} bytes, more than any model's ({most:,}): it is probably another file")


def unreadable_file(folder: Path) -> str | None:
    """Which of a folder's configs and chat templates is not UTF-8 or not JSON, and where; None if all can be read."""
    for path in [*(folder / name for name in (*CONFIGS, *TOKENIZER_FILES)), *folder.rglob("*.jinja")]:
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
            if path.suffix == ".json":
                json.loads(text)
        except UnicodeDecodeError as error:
            return f"{path} is not UTF-8 at byte {error.start}"
        except json.JSONDecodeError as error:
            return f"{path} is not JSON at line {error.lineno}, column {error.colno} ({error.msg})"
        except (RecursionError, OSError):
            continue
    return None


def check_config(folder: Path) -> None:
    """Raise `ModelError` for more layers, experts or labels than any model has, and for heads that do not divide.

    Invalid JSON is left to the library to report.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        numbers = list(_numbers(config))
    except (ValueError, RecursionError):
        return
    _check_heads(path, config)
    for key, number in numbers:
        for parts, (names, most) in MOST_PARTS.items():
            if number > most and names.search(key):
                shown = f"{number:,}" if number < 10**15 else "more than 10^15"
                raise ModelError(f"{path} asks for {shown} {parts} ({key}), more than any model ({most:,})")


def _check_heads(path: Path, config: object) -> None:
    """Raise `ModelError` if the groups of heads differ in size: no forward pass of such a model can work."""
    for part in (config, config.get("text_config")) if isinstance(config, dict) else ():
        sizes = [part.get(name) for name in HEADS] if isinstance(part, dict) else []
        heads, groups = (size if type(size) is int and size > 0 else 1 for size in sizes or (1, 1))
        if heads % groups:
            given = f"{HEADS[0]} {heads} is not a multiple of {HEADS[1]} {groups}"
            raise ModelError(f"{path}: {given}: download it again")


def _numbers(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a JSON value, each with its key."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def check_weights(folder: Path) -> None:
    """Raise `ModelError` if a folder has no complete safetensors, or its index names any other file."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} has no *.safetensors: batchgen reads no other weights, because pickles can run code"
        )
    for name in indexed_files(folder / INDEX):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{folder / INDEX} points to {name}: batchgen only reads *.safetensors in the same folder")
    for file in files:
        try:
            with safe_open(file, framework="pt"):  # reads only the header
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is incomplete or not safetensors ({error}): download it again") from None
        except MemoryError:
            size = size_text(file.stat().st_size)
            raise ModelError(f"{file} has {size}, more than this process can map: try a smaller model") from None


def indexed_files(index: Path) -> set[str]:
    """The files that an index names; none if there is no index. Raises `ModelError` for a broken one."""
    if not index.is_file():
        return set()
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{index} is not an index of weights: download it again") from None
