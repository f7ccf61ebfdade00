"""Hostile model folders: refused in one line within ten seconds, or run as if the harm were not there.

No code from a folder may run: each folder has a canary file that its code would create, and stdin answers `y`.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batchgen
from torture.commands import PATIENCE_S, Ended, run
from torture.lab import Check, Lab, Trial, Tried

BUNDLED = Path(batchgen.__file__).parent / "bundled"
LIMIT_S = 10.0
CANARY = "canary"  # in the parent folder
WEIGHTS = "model.safetensors"
MOST_BYTES = 6 * 2**30  # protects the machine
COMMAND = (sys.executable, "-m", "batchgen", "run", "-p", "My dog is", "--max-new-tokens", "5")
FLAGS = ("--format", "text", "--quiet", "--model")

Harm = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Hostile:
    """A way to spoil a folder. If `is_harmless`, it may also run, and then must answer as the unspoiled model does."""

    name: str
    spoil: Harm
    is_harmless: bool = False

    def __str__(self) -> str:
        return self.name


class Touch:
    """Creates the canary when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


# Files.


def edit(name: str, **values: object) -> Harm:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))

    return spoil


def content(name: str, text: str | bytes) -> Harm:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def instead(name: str, make: Harm) -> Harm:
    """Replace a file with something that is not a regular file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def link(target: str) -> Harm:
    return lambda path: path.symlink_to(target)


def sparse(num_bytes: int) -> Harm:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, num_bytes)

    return make


def pickled(name: str, *, alone: bool) -> Harm:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(pickle.dumps({"x": Touch(folder.parent / CANARY)}))
        if alone:
            (folder / WEIGHTS).unlink()

    return spoil


# Weights.


def weights(change: Callable[[dict[str, Any], bytearray], bytes | None]) -> Harm:
    """The bundled model's weights with a changed header; `change` may return the whole file."""

    def spoil(folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        header, data = json.loads(whole[8 : 8 + length]), bytearray(whole[8 + length :])
        made = change(header, data)
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).write_bytes(made if made is not None else _assembled(header, data))

    return spoil


def _assembled(header: dict[str, Any], data: bytes | bytearray) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def some_weight(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = header["transformer.h.0.mlp.c_fc.weight"]
    return entry


def changed(**values: object) -> Harm:
    """Change one weight's entry in the header."""
    return weights(lambda header, data: some_weight(header).update(values))


def without_a_weight(header: dict[str, Any], data: bytearray) -> bytes:
    """Remove a weight with its bytes, because safetensors allows no holes."""
    begin, end = some_weight(header)["data_offsets"]
    del header["transformer.h.0.mlp.c_fc.weight"], data[begin:end]
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
    return _assembled(header, data)


def with_another(header: dict[str, Any], data: bytearray) -> bytes:
    header["evil.weight"] = {"dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + 8]}
    return _assembled(header, data + b"\0" * 8)


def with_nan(header: dict[str, Any], data: bytearray) -> bytes:
    begin, end = some_weight(header)["data_offsets"]
    data[begin:end] = b"\x00\x7e" * ((end - begin) // 2)  # float16
    return _assembled(header, data)


def overlapping(header: dict[str, Any], data: bytearray) -> None:
    other = header["transformer.h.1.mlp.c_fc.weight"]
    some_weight(header)["data_offsets"] = other["data_offsets"]


def pickled_shard(folder: Path) -> None:
    """Complete safetensors, and an index that points to a pickle."""
    pickled("pytorch_model.bin", alone=False)(folder)
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_elsewhere(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "../../../../../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# Code.


def own_code(file: str, **values: object) -> Harm:
    """A module that creates the canary, and a file that refers to it."""

    def spoil(folder: Path) -> None:
        canary = str(folder.parent / CANARY)
        body = f"open({canary!r}, 'w')\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
        for name in ("evil.py", "modeling_evil.py", "tokenization_evil.py"):
            (folder / name).write_text(body)
        edit(file, **values)(folder)

    return spoil


TEMPLATE = (
    "{{ cycler.__init__.__globals__.os.system('touch ../canary') }}"
    "{% for i in range(10**9) %}{% for j in range(10**9) %}x{% endfor %}{% endfor %}"
)
AUTO_MAP = {
    "AutoConfig": "evil.Config",
    "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", None],
}
GENERATION = {
    "max_length": 10**30, "num_beams": 10**9, "num_return_sequences": 10**9, "temperature": "__import__('os')",
    "eos_token_id": [[], {}, "x", -1, 10**40, None, True, 50256], "bad_words_ids": [[10**9]], "use_cache": "no",
    "cache_implementation": "evil", "custom_generate": "evil/repository", "watermarking_config": {"a": 1},
    "compile_config": {"backend": "evil"}, "assistant_model": "evil", "stop_strings": [None], "x": [1] * 100_000,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 50257, "max_position_embeddings": 512,
}  # fmt: skip
QWEN = {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
GPT_NEO = {"model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"], "num_layers": 2}


def config(base: dict[str, Any], **values: object) -> Harm:
    return content("config.json", json.dumps({**base, **values}))


def replacing(sign: str | None, by: str, times: int, kind: str = "normalizers") -> dict[str, Any]:
    """Steps that replace one character, or any letter."""
    pattern = {"Regex": "[a-z ]"} if sign is None else {"String": sign}
    return {"type": "Sequence", kind: [{"type": "Replace", "pattern": pattern, "content": by}] * times}


def splitting(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [nested(depth - 1)]} if depth else {"type": "NFC"}


STRANGE: list[object] = [0, -5, "x", 1e300, [512]]
KINDS = [
    # Pickles.
    Hostile("pickle only", pickled("pytorch_model.bin", alone=True)),
    Hostile("pickle beside safetensors", pickled("pytorch_model.bin", alone=False), is_harmless=True),
    Hostile("pickle called safetensors", lambda folder: (
        pickled("x.bin", alone=True)(folder), (folder / "x.bin").rename(folder / WEIGHTS))),
    Hostile("index that leads to a pickle", pickled_shard),
    Hostile("index that leads out of the folder", shard_elsewhere),
    # Malformed safetensors.
    Hostile("truncated header", weights(lambda header, data: _assembled(header, data)[:500])),
    Hostile("truncated data", weights(lambda header, data: _assembled(header, data)[:-1000])),
    Hostile("header of 2^60 bytes", weights(lambda header, data: struct.pack("<Q", 2**60) + b"{}" + data)),
    Hostile("header that is no JSON", weights(lambda header, data: struct.pack("<Q", 8) + b"nonsense" + data)),
    Hostile("header nested 10^5 deep", weights(
        lambda header, data: struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000 + data)),
    Hostile("overlapping offsets", weights(overlapping)),
    Hostile("offsets beyond the end", changed(data_offsets=[0, 2**50])),
    Hostile("negative offsets", changed(data_offsets=[-10, 10])),
    Hostile("shape of 2^80 elements", changed(shape=[2**40, 2**40])),
    Hostile("dtype NaN", changed(dtype="NaN")),
    Hostile("empty weights", content(WEIGHTS, b"")),
    Hostile("a weight is missing", weights(without_a_weight)),
    Hostile("a weight too many", weights(with_another), is_harmless=True),
    Hostile("a misshaped weight", changed(shape=[768, 192])),
    Hostile("weights that are NaN", weights(with_nan)),
    # Code.
    Hostile("auto_map", own_code("config.json", auto_map=AUTO_MAP, model_type="evil")),
    Hostile("auto_map beside a known type", own_code("config.json", auto_map=AUTO_MAP), is_harmless=True),
    Hostile("auto_map of the tokenizer", own_code(
        "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="EvilTokenizer"), is_harmless=True),
    Hostile("kernel from the Hub", edit("config.json", attn_implementation="evil/kernel",
        _attn_implementation="evil/kernel", _attn_implementation_internal="evil/kernel"), is_harmless=True),
    Hostile("experts' kernel from the Hub", edit("config.json", _experts_implementation="evil/kernel",
        experts_implementation="evil/kernel"), is_harmless=True),
    Hostile("quantized by the unknown", edit("config.json", quantization_config={"quant_method": "evil"}),
        is_harmless=True),
    Hostile("adapter from elsewhere", content("adapter_config.json", json.dumps(
        {"base_model_name_or_path": "evil/model", "peft_type": "LORA", "auto_mapping": AUTO_MAP})), is_harmless=True),
    Hostile("dtype that is code", edit("config.json", dtype="__import__('os')", torch_dtype="os.system"),
        is_harmless=True),
    Hostile("generation_config", edit("generation_config.json", **GENERATION), is_harmless=True),
    Hostile("generation_config nested 10^5 deep", content("generation_config.json", "[" * 100_000), is_harmless=True),
    Hostile("generation_config that is a list", content("generation_config.json", "[1]"), is_harmless=True),
    Hostile("chat template", lambda folder: (edit("tokenizer_config.json", chat_template=TEMPLATE)(folder),
        content("chat_template.jinja", TEMPLATE)(folder)), is_harmless=True),
    # Absurd sizes.
    Hostile("a terabyte", edit("config.json", n_embd=65536, n_head=64, n_layer=100)),
    Hostile("10^9 layers", edit("config.json", n_layer=10**9)),
    Hostile("10^9 layers, Llama", config(LLAMA, num_hidden_layers=10**9)),
    Hostile("10^9 layers, Qwen", config(QWEN, num_hidden_layers=10**9)),
    Hostile("10^5 narrow layers", config(LLAMA, num_hidden_layers=10**5, hidden_size=4, intermediate_size=4)),
    Hostile("10^9 layers by a pattern", config(GPT_NEO, attention_types=[[["global", "local"], 10**9]])),
    Hostile("10^9 experts", config(MIXTRAL, num_local_experts=10**9)),
    Hostile("10^9 labels", edit("config.json", num_labels=10**9)),
    Hostile("a terabyte, Llama", config(LLAMA, hidden_size=2**20, intermediate_size=2**22)),
    Hostile("vocabulary of 10^12", edit("config.json", vocab_size=10**12)),
    Hostile("vocabulary of -1", edit("config.json", vocab_size=-1)),
    Hostile("10^12 positions", edit("config.json", n_positions=10**12)),
    Hostile("heads that do not divide", config(LLAMA, num_key_value_heads=3)),
    Hostile("no heads", edit("config.json", n_head=0)),
    Hostile("negative width", edit("config.json", n_embd=-192)),
    Hostile("width that is text", edit("config.json", n_embd="192")),
    Hostile("width that is a list", edit("config.json", n_embd=[192])),
    Hostile("width that is null", edit("config.json", n_embd=None)),
    *(Hostile(f"architectures {value}", edit("config.json", architectures=value), is_harmless=True)
        for value in (5, "GPT2LMHeadModel", [None], [{}], {"a": 1})),
    *(Hostile(f"{value} positions", edit("config.json", n_positions=value), is_harmless=True)
        for value in STRANGE),
    Hostile("model type that is a list", edit("config.json", model_type=["gpt2"])),
    Hostile("activation that is code", edit("config.json", activation_function="__import__('os').getcwd")),
    Hostile("10^400 layers", edit("config.json", n_layer=10**400)),
    # Files that are not regular or not valid.
    Hostile("config of a terabyte", instead("config.json", sparse(2**40))),
    Hostile("tokenizer of a terabyte", instead("tokenizer.json", sparse(2**40))),
    Hostile("tokenizer_config of a terabyte", instead("tokenizer_config.json", sparse(2**40))),
    Hostile("generation_config of a terabyte", instead("generation_config.json", sparse(2**40))),
    Hostile("weights of a terabyte", instead(WEIGHTS, sparse(2**40))),
    Hostile("config nested 10^6 deep", content("config.json", '{"a":' * 10**6)),
    Hostile("config that is a list", content("config.json", "[]")),
    *(Hostile(f"{name} is /etc/passwd", instead(name, link("/etc/passwd")))
        for name in ("config.json", "tokenizer.json", WEIGHTS)),
    *(Hostile(f"{name} is a FIFO", instead(name, os.mkfifo)) for name in (
        "config.json", "tokenizer.json", WEIGHTS, "generation_config.json", "tokenizer_config.json",
        "chat_template.jinja", "special_tokens_map.json", "adapter_config.json")),
    *(Hostile(f"{name} is /dev/zero", instead(name, link("/dev/zero"))) for name in (
        "config.json", "tokenizer.json", WEIGHTS)),
    Hostile("config.json is a folder", instead("config.json", lambda path: path.mkdir())),
    Hostile("tokenizer.json leads to itself", instead("tokenizer.json", link("tokenizer.json"))),
    Hostile("tokenizer that is no JSON", content("tokenizer.json", "nonsense")),
    *(Hostile(f"tokenizer whose {part} {does}", edit("tokenizer.json", **{part: steps})) for part, does, steps in (
        ("normalizer", "makes 10^9 letters of one", replacing("a", "a" * 10, 9)),
        ("normalizer", "doubles each letter 40 times", replacing(None, "be", 40)),
        ("normalizer", "is nested 100 deep", nested(100)),
        ("normalizer", "prepends a MiB", {"type": "Prepend", "prepend": "a" * 2**20}),
        ("decoder", "makes 10^9 letters of one", replacing("a", "a" * 10, 9, "decoders")),
        ("decoder", "strips beyond the end", {"type": "Strip", "content": "a", "start": 0, "stop": 10**18}),
        ("pre_tokenizer", "backtracks without end", splitting("(o|oo)+$b")),
        ("pre_tokenizer", "is no pattern", splitting("(((")))),
    Hostile("tokenizer with tokens beyond the model", lambda folder: edit("tokenizer.json", added_tokens=[
        {"id": 10**9, "content": "My dog", "special": False, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}])(folder)),
]  # fmt: skip


def expected(folder: Path) -> bytes:
    """Return what the unspoiled model answers."""
    ended = _run(_copy(folder), PATIENCE_S)
    assert ended.code == 0, ended.stderr
    return ended.stdout


def _copy(folder: Path) -> Path:
    return Path(shutil.copytree(BUNDLED, folder / "model"))  # no links: only a copy is spoiled


def _run(folder: Path, limit_s: float) -> Ended:
    return run(
        [*COMMAND, *FLAGS, f"./{folder.name}"],
        cwd=folder.parent,
        stdin=b"y\n" * 50,
        limit_s=limit_s,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES)),
    )


def hostile(trial: Trial) -> Iterator[Tried]:
    kind = trial.given
    kind.spoil(_copy(trial.folder))
    ended = _run(trial.folder / "model", LIMIT_S * trial.lab.patience)
    trial.measure("slowest, s", ended.seconds)
    if kind.is_harmless and ended.code == 0:
        problem = None if ended.stdout == trial.lab.once(expected) else f"it changed the answer: {ended.stdout!r}"
        problem = problem or (f"stderr: {ended.stderr}" if ended.stderr else None)
    else:
        problem = ended.refusal_problem("model") if ended.code != 3 else ended.problem(3)
    if (trial.folder / CANARY).exists():
        problem = "its code ran"
    yield Tried(str(kind), problem)


TOKENIZERS = [kind for kind in KINDS if kind.name.startswith("tokenizer whose")]
OTHERS = [kind for kind in KINDS if kind not in TOKENIZERS]


def some_of(kinds: list[Hostile]) -> Callable[[Lab], list[Hostile]]:
    return lambda lab: list(lab.pick(kinds, len(kinds)))


PROMISE = "refused in one line within 10 s, or harmless; no canary"
CHECKS = [
    Check("hostile", f"hostile model folders: {PROMISE}", some_of(OTHERS), hostile),
    Check("hostile-tokenizer", f"hostile tokenizers: {PROMISE}", some_of(TOKENIZERS), hostile),
]
