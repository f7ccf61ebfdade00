"""Tiny models whose rows affect their neighbours, and the bundled one where tokens, time or memory matter.

A batch must give what the same model gives the rows one at a time.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torture.commands import FAKE, NO_FOLDER, REAL, Ended, run, write_jsonl
from torture.hostile import BUNDLED
from torture.lab import Check, Skipped, Trial, Tried
from torture.spoiled import copy_model, generate, tokens

LONG = "On Sunday the rain was gone, and a warm wind blew over all the green hills behind the old town"
PROMPTS = ["My dog is", LONG, "The moon", "She said"]
SHARED = """
import shutil, sys
from pathlib import Path
import torch, transformers as tf
ends = dict(vocab_size=50257, bos_token_id=50256, eos_token_id=50256)
small = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, **ends)
config = {config}
torch.manual_seed(0)
model = tf.AutoModelForCausalLM.from_config(config)
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4) if parameter.std() else parameter.normal_(0, 0.08)
model.save_pretrained(sys.argv[1])
for file in Path(sys.argv[2]).glob("tok*"):
    shutil.copy(file, sys.argv[1])
"""
CONFIGS = {
    # Its state also takes in pads, whatever the mask says.
    "rwkv": "tf.RwkvConfig(hidden_size=48, attention_hidden_size=48, num_hidden_layers=2, context_length=128, **ends)",
    # Its factors depend on the longest row of a forward.
    "phi3": "tf.Phi3Config(max_position_embeddings=256, original_max_position_embeddings=14, pad_token_id=50256,"
    " rope_parameters=dict(rope_type='longrope', rope_theta=2e4, original_max_position_embeddings=14, factor=12.0,"
    " short_factor=[1.0 + i / 16 for i in range(8)], long_factor=[2.0 + 3 * i for i in range(8)]), **small)",
}


def make(family: str, folder: Path) -> Path:
    made = run([sys.executable, "-c", SHARED.format(config=CONFIGS[family]), folder, BUNDLED])
    assert made.code == 0, made.stderr
    return folder


def together(trial: Trial) -> Iterator[Tried]:
    """All rows in one batch, and one at a time."""
    make(trial.given, trial.folder / "model")
    options = ("--engine", "reference", "--batch-size")
    alone, wanted = generate(trial.folder, PROMPTS, *options, "1", model="model")
    batch, found = generate(trial.folder, PROMPTS, *options, "4", "--manifest", "batch.json", model="model")
    problem = _bad(alone) or _bad(batch)
    if not problem and tokens(found) != tokens(wanted):
        problem = f"together {tokens(found)}, and one at a time {tokens(wanted)}"
    if not problem and trial.given == "phi3" and '"batching": "padded"' not in _engine(trial.folder / "batch.json"):
        problem = "rows of different lengths run apart: the trial caught what the rule forgot"
    yield Tried(trial.given, problem)


def _bad(ended: Ended) -> str | None:
    """Like `Ended.problem`, but a line saying that a slower way is used is allowed."""
    return None if ended.code == 0 and "Traceback" not in ended.stderr else f"exit {ended.code}: {ended.stderr[-1000:]}"


NONSENSE = """
import sys
from batchgen import check_padding, open_model
rows = sys.argv[2:]
checks = check_padding(lambda prompts: [[5, 6, 7] for _ in prompts], rows, open_model(sys.argv[1]), max_new_tokens=3)
print([check.verdict for check in checks])
"""


def nonsense(trial: Trial) -> Iterator[Tried]:
    """A loop that gives the same answer to everything, on a model whose rows change a lot in a batch of copies."""
    model = make("rwkv", trial.folder / "model")
    ended = run([sys.executable, "-c", NONSENSE, model, *PROMPTS[:2]], cwd=trial.folder)
    said = ended.stdout.decode()
    problem = None if ended.code == 0 else f"exit {ended.code}: {ended.stderr[-1000:]}"
    if not problem and ("rounding" in said or "identical" in said):
        problem = f"it is called {said.strip()}"
    yield Tried("the same three tokens", problem)


CLOCK = """
import os, random, time
real, chance, late = time.perf_counter, random.Random(int(os.environ["CLOCK"])), 0.0
def perf_counter():
    global late
    late += chance.random() ** 8 * 2
    return real() + late
time.perf_counter = perf_counter
"""


def clocks(trial: Trial) -> Iterator[Tried]:
    """Timings while a model loads vary randomly; the manifest must name the same kernels each time."""
    (trial.folder / "clock").mkdir()
    (trial.folder / "clock" / "sitecustomize.py").write_text(CLOCK)
    seen = {}
    for clock in range(4):
        command = [*REAL, "-p", "My dog is", "--max-new-tokens", "4", "-q", "--format", "jsonl"]
        path = _first_on_path(trial.folder / "clock")
        environment = {"PYTHONPATH": path, "CLOCK": str(clock), "XDG_CACHE_HOME": NO_FOLDER}
        ended = run([*command, "--manifest", f"{clock}.json"], cwd=trial.folder, environment=environment)
        if ended.code:
            yield Tried("clocks", f"exit {ended.code}: {ended.stderr[-1000:]}")
            return
        seen[clock] = _engine(trial.folder / f"{clock}.json"), ended.stdout
    yield Tried("four clocks", None if len(set(seen.values())) == 1 else f"they give {[*seen.values()]}")


def _first_on_path(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def _engine(manifest: Path) -> str:
    return json.dumps(json.loads(manifest.read_text())["engine"], sort_keys=True)


def _write_tokenizer(model: Path, tokenizer: dict[str, Any]) -> None:
    """Write it as a tokenizer class that takes it as it is; GPT-2's own class would rebuild its parts."""
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))


def special_stop(trial: Trial) -> Iterator[Tried]:
    """A stop string that is a special token: a token that the bundled model generates is made special."""
    plain_ended, [plain] = generate(trial.folder, ["My dog is"])
    model = copy_model(trial.folder)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    names = {index: name for name, index in tokenizer["model"]["vocab"].items()}
    place, stop = next((i, token) for i, token in enumerate(plain["output_ids"]) if names[token].isascii())
    name = names[stop]
    tokenizer["added_tokens"].insert(0, {**tokenizer["added_tokens"][0], "id": stop, "content": name})
    _write_tokenizer(model, tokenizer)
    ended, rows = generate(trial.folder, ["My dog is"], "--engine", trial.given, "--stop", name, model="model")
    problem = plain_ended.problem(0) or _bad(ended)
    if not problem and (rows[0]["finish_reason"], rows[0]["num_output_tokens"]) != ("stop", place + 1):
        problem = f"it ended with {rows[0]['finish_reason']} after {rows[0]['num_output_tokens']} tokens"
    yield Tried(f"{trial.given}, {name}", problem)


def endless(trial: Trial) -> Iterator[Tried]:
    """A pattern that gets stuck on one text: that row fails, the others are answered."""
    model = copy_model(trial.folder)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    search = {"type": "Split", "pattern": {"Regex": r"(?:x|y)*(?:x|y)*[0-9]{2}|[\s\S]"}, "behavior": "Isolated",
              "invert": False}  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [search, byte_level]}
    _write_tokenizer(model, tokenizer)
    ended, rows = generate(trial.folder, ["My dog is", "xy" * 1250 + "1 11", "The sun"], model="model")
    problem = ended.problem(3)
    if not problem and [row["error"] is not None for row in rows] != [False, True, False]:
        problem = f"the errors are {[row['error'] for row in rows]}"
    yield Tried("a search through one text", problem)


def too_little(trial: Trial) -> Iterator[Tried]:
    """Weights that do not fit into the memory of one process, or of two, are reported at once; no row is tried."""
    file = write_jsonl(trial.folder / "rows.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    for said, words in (("weights", ("--memory", "10M")), ("2 workers", ("--memory", "300M", "--workers", "2"))):
        ended = run([*REAL, file, "-q", "--format", "jsonl", *words], cwd=trial.folder)
        problem = ended.refusal_problem("--memory", said) or ("rows came out" if ended.stdout else None)
        yield Tried(" ".join(words), problem)


def bounded(trial: Trial) -> Iterator[Tried]:
    """A small file with large rows stays small in memory."""
    file, codes = trial.given(trial.folder)
    limit = 2 * 2**30
    ended = run(
        [*FAKE, file, "-q", "--format", "jsonl", "--max-new-tokens", "1"],
        cwd=trial.folder,
        environment={"TORTURE_FULL_WINDOWS": "1"},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    yield Tried(file.name, ended.problem(*codes))


def dictionary(folder: Path) -> tuple[Path, tuple[int, ...]]:
    """300 rows that share one text of 7 MiB, and four of 32 MiB, which are too long."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise Skipped("pyarrow is not installed") from None
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 300 + [1] * 4, pa.int32()), ["a" * 7 * 2**20, "a" * 2**25])
    table = pa.table({"prompt": ["The sun"] * len(texts), "large": texts})
    pq.write_table(table, folder / "rows.parquet", compression="zstd")
    return folder / "rows.parquet", (3,)


def nested(folder: Path) -> tuple[Path, tuple[int, ...]]:
    """1,200 rows of 60,000 lists each."""
    line = b'{"prompt": "The sun", "deep": [' + b"[]," * 60_000 + b"0]}\n"
    with gzip.open(folder / "rows.jsonl.gz", "wb", compresslevel=1) as stream:
        stream.writelines([line] * 1200)
    return folder / "rows.jsonl.gz", (0,)


def one(name: str, promise: str, attempt: Callable[[Trial], Iterator[Tried]], *cases: Any) -> Check:
    return Check(name, promise, lambda lab: list(cases) or [None], attempt)


CHECKS = [
    one("family-batch", "rows get in a batch what they get one at a time", together, *CONFIGS),
    one("family-nonsense", "a loop that answers nonsense is never called rounding", nonsense),
    one("family-clock", "no clock decides what a run is made of", clocks),
    one("model-special-stop", "a stop that is a special token ends its row", special_stop, "continuous", "reference"),
    one("model-endless", "a text that the tokenizer searches without end fails alone", endless),
    one("model-memory", "too little --memory is said before weights load", too_little),
    one("bounded", "a small file of large rows takes less than 2 GiB", bounded, dictionary, nested),
]
