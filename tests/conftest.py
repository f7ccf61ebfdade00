"""Shared fixtures: no network, an empty cache, tiny random models, the bundled one, a fake engine.

Fixtures import torch and transformers themselves: the process that hands tests to those of pytest-xdist needs neither.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="batchgen-tests-")
os.environ["XDG_CONFIG_HOME"] = os.environ["HF_HOME"]
os.environ.setdefault("TESTS_CACHE", os.environ["HF_HOME"])  # pytest-xdist's processes inherit that of the first one
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `batchgen.__main__` does, before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and several processes share the cores

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from batchgen.engines import Engine
    from batchgen.model import Checkpoint, Model
    from batchgen.model.config_view import ConfigView
    from batchgen.model.tokenizer import LightTokenizer
    from batchgen.records import EngineOptions, MemoryLimit
    from tests.support.engines import FakeEngine

importlib.metadata.version = cache(importlib.metadata.version)  # each run asks for several, and parses files each time

# Test machines are shared: an example must not fail for being slow.
settings.register_profile("batchgen", deadline=None, max_examples=50)
settings.load_profile("batchgen")


def pytest_configure() -> None:
    # Byte code is kept whatever the environment says: hundreds of processes would compile the package again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    gc.set_threshold(50_000)  # as `batchgen.machine.process` does


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # otherwise each collection would scan all imported objects, and running out of memory triggers one


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """After a file, leave out what the session keeps too: models, tokenizers, compiled loops."""
    yield
    if nextitem and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_report_header() -> str:
    return "`make test` takes about 5 minutes on 2 quiet cores; JOBS=N shares it among N processes"


@pytest.fixture(scope="session", autouse=True)
def tokenizers_are_read_once() -> Iterator[None]:
    """Hundreds of tests run the bundled model in this process, and reading its tokenizer takes longer than the run.

    Random models have a copy of it in folders of their own, which are told by the contents of their small files.
    """
    from transformers import AutoTokenizer

    from batchgen.model import checkpoint as checkpoints
    from batchgen.model.config_view import read_config_view
    from batchgen.model.find import BUNDLED_FOLDER

    read, read_light = AutoTokenizer.from_pretrained, checkpoints.read_light_tokenizer
    kept: dict[object, PreTrainedTokenizerBase] = {}
    light = read_light(BUNDLED_FOLDER, read_config_view(BUNDLED_FOLDER))

    def read_once(folder: Path, **options: object) -> PreTrainedTokenizerBase:
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix != ".safetensors" and path.is_file())
        key = (repr(options), tuple((path.name, path.read_bytes()) for path in files) or folder)
        if key not in kept:
            kept[key] = read(folder, **options)
        return kept[key]

    def read_light_once(folder: Path, config: ConfigView) -> LightTokenizer | None:
        return light if folder == BUNDLED_FOLDER else read_light(folder, config)

    with (
        mock.patch.object(AutoTokenizer, "from_pretrained", read_once),
        mock.patch.object(checkpoints, "read_light_tokenizer", read_light_once),
    ):
        yield


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Tests draw the same numbers whichever ran before: one that fails fails again."""
    random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def loops_are_compiled_once() -> None:
    """Each takes a second or two, and all processes that share the tests need most of them."""
    from batchgen.engines.compiled.support import cache_folder

    with mock.patch.dict(os.environ, XDG_CACHE_HOME=os.environ["TESTS_CACHE"]):
        cache_folder()


@pytest.fixture(scope="session", autouse=True)
def workers_are_forked() -> Iterator[None]:
    from batchgen.engines.pool import seat
    from tests.support.forked import get_context

    with mock.patch.object(seat, "get_context", get_context):
        yield


@pytest.fixture(scope="session", autouse=True)
def bundled_weights_are_read_once() -> Iterator[None]:
    """Commands in this process share the weights and the slots' packed copies; none of them owns the model."""
    from batchgen.model.find import BUNDLED_FOLDER
    from batchgen.records import EngineOptions
    from batchgen.runs import equipment

    load, make, make_scoring = equipment.load_model, equipment.make_engine, equipment.make_scoring_engine
    kept: dict[str, Model] = {}

    def load_once(
        checkpoint: Checkpoint, device: str = "auto", dtype: str = "auto", memory: MemoryLimit | None = None
    ) -> Model:
        if checkpoint.folder != BUNDLED_FOLDER or memory:
            return load(checkpoint, device, dtype, memory)
        if dtype not in kept:
            kept[dtype] = load(checkpoint, device, dtype)
            with mock.patch.dict(os.environ, XDG_CACHE_HOME=os.environ["HF_HOME"]):
                make(kept[dtype], EngineOptions("continuous")).close()
                make_scoring(kept[dtype]).close()
        return replace(kept[dtype], checkpoint=checkpoint)

    def make_on_shared(model: Model, options: EngineOptions, *, is_owned: bool, **more: Any) -> Engine:
        return make(model, options, is_owned=is_owned and model.checkpoint.folder != BUNDLED_FOLDER, **more)

    def score_on_shared(model: Model, options: EngineOptions, *, is_owned: bool, **more: Any) -> Engine:
        return make_scoring(model, options, is_owned=is_owned and model.checkpoint.folder != BUNDLED_FOLDER, **more)

    made = {"make_engine": make_on_shared, "make_scoring_engine": score_on_shared}
    with mock.patch.multiple(equipment, load_model=load_once, **made):
        yield


@pytest.fixture(scope="session", autouse=True)
def files_are_hashed_once() -> Iterator[None]:
    """Each run's manifest has hashes of its model's weights: here, of large files with the same name, size and time."""
    from batchgen.runs import manifest

    hash_files, kept = manifest._hash, {}

    def hash_once(files: Iterable[Path]) -> str:
        files = list(files)
        stats = [path.stat() for path in files]
        if sum(its.st_size for its in stats) < 1 << 20:  # a test may change them within a tick of the clock
            return hash_files(files)
        key = tuple((path, its.st_ino, its.st_size, its.st_mtime_ns) for path, its in zip(files, stats, strict=True))
        if key not in kept:
            kept[key] = hash_files(files)
        return kept[key]

    with mock.patch.object(manifest, "_hash", hash_once):
        yield


@pytest.fixture(scope="session", autouse=True)
def control_groups_are_read_rarely() -> Iterator[None]:
    """Engines ask before each step what they leave free; tests ask about other machines' files, or patch the answer."""
    from batchgen.machine import cgroups, limits

    read: dict[int, dict[str, int]] = {}  # by half second

    def headrooms(root: Path) -> dict[str, int]:
        if root != limits.ROOT:
            return real(root)
        now = int(time.monotonic() * 2)
        if now not in read:
            read.clear()
            read[now] = real(root)
        return dict(read[now])

    real = cgroups.headrooms
    with mock.patch.object(cgroups, "headrooms", headrooms):
        yield


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start each test with an empty cache: measured speeds would affect how the runs of other tests are planned.

    Only what neither test order nor other load can change is in it: verdicts on the session's models, and facts about
    shapes. Tests that patch something add none to the latter. Files are linked, since `keep` replaces whole ones.
    """
    from batchgen.engines.continuous import row_counts
    from batchgen.engines.trial import verdicts
    from batchgen.machine.kept import keep, kept_path, read_kept
    from batchgen.model import footprint

    of_shapes, before = (row_counts.FILE, footprint.FILE), os.environ.copy()
    folder = tempfile.mkdtemp(dir=os.environ["HF_HOME"], prefix="cache-")
    own, session = {"XDG_CACHE_HOME": folder}, {"XDG_CACHE_HOME": os.environ["HF_HOME"]}
    Path(folder, "batchgen").mkdir()
    for name in (verdicts.FILE, *of_shapes):
        with suppress(FileNotFoundError):
            kept_path(name, own).hardlink_to(kept_path(name, session))
    os.environ.update(own)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})
    if "monkeypatch" in request.fixturenames:
        return
    for name in of_shapes:
        mine, ours = kept_path(name, own), kept_path(name, session)
        if mine.exists() and not (ours.exists() and mine.samefile(ours)):
            facts, known = read_kept(name, own), read_kept(name, session)
            keep(name, {key: facts[key] for key in facts.keys() - known.keys()}, session)


@pytest.fixture(scope="session")
def bundled_is_tried(bundled: Model) -> None:
    """For tests that run the bundled model in other processes, which would otherwise each try it again."""
    from batchgen.engines import make_engine
    from batchgen.records import EngineOptions

    make_engine(bundled, EngineOptions("continuous")).close()


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    from batchgen.model import open_checkpoint

    return open_checkpoint("bundled")


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    return checkpoint.tokenizer


@pytest.fixture(scope="session")
def bundled() -> Model:
    from batchgen.model import open_model

    return open_model("bundled", device="cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> dict[str, Path]:
    """A saved random model of each architecture."""
    from tests.support.models import ARCHITECTURES, make_network

    made = {}
    for name in ARCHITECTURES:
        made[name] = tmp_path_factory.mktemp(name)
        make_network(name).save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.fixture(scope="session")
def tiny_models(folders: dict[str, Path]) -> dict[str, Model]:
    from batchgen.model import open_model

    return {name: open_model(str(folder), device="cpu") for name, folder in folders.items()}


@pytest.fixture(scope="session")
def said(bundled: Model) -> Callable[[str, int], str]:
    """The bundled model's output for a prompt and a number of tokens."""
    from tests.support.models import decide_alone

    return lambda prompt, num_tokens: bundled.checkpoint.tokenizer.decode(decide_alone(bundled, prompt, num_tokens))


@pytest.fixture
def fake_engine() -> FakeEngine:
    from tests.support.engines import FakeEngine

    return FakeEngine()


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the verdicts of earlier trials."""
    monkeypatch.setattr("batchgen.engines.trial.ladder.read_verdict", lambda model, engine: None)
    monkeypatch.setattr("batchgen.engines.trial.ladder.keep_verdict", lambda model, engine, verdict: None)
