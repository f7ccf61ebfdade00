from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, GPT2Config, T5Config

from batchgen import Model, open_model
from batchgen.errors import ModelError, NotCachedError, UsageError
from batchgen.model import open_checkpoint
from batchgen.model.chat.template_files import read_templates
from batchgen.model.find import BUNDLED_FOLDER, find_model
from batchgen.model.weights import choose_device, choose_dtype
from batchgen.runs.manifest import model_facts
from tests.support.fake_hub import SHA, fake_hub, put_in_cache
from tests.support.models import ARCHITECTURES
from tests.support.processes import run_python


@pytest.fixture
def folder(tmp_path: Path, folders: dict[str, Path]) -> Path:
    """A copy of a tiny GPT-2 to break."""
    return Path(shutil.copytree(folders["gpt2"], tmp_path / "model"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        open_model(str(folder), device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is bundled.


def test_the_bundled_model_loads_in_float32(bundled: Model) -> None:
    assert bundled.dtype == torch.float32
    assert next(bundled.network.parameters()).dtype == torch.float32
    assert bundled.checkpoint.n_positions == 1024
    assert (bundled.checkpoint.pad_token_id, bundled.checkpoint.eos_token_ids) == (50256, {50256})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoder_only_architectures_load(tiny_models: dict[str, Model], architecture: str) -> None:
    expected = None if architecture == "bloom" else 128
    assert tiny_models[architecture].checkpoint.n_positions == expected
    assert tiny_models[architecture].takes_position_ids == (architecture != "bloom")


# What is refused, in one line.


def test_a_folder_that_does_not_exist() -> None:
    assert "./nowhere is neither a folder nor a Hub id" in refusal("./nowhere")


@pytest.mark.parametrize("name", ["foo--bar", "-foo", "x.git", "~nosuchuser/x", "", "a" * 300])
def test_a_name_that_cannot_be_a_model(name: str) -> None:
    refusal(name)


def test_a_long_path_is_named_whole(tmp_path: Path) -> None:
    assert str(tmp_path / ("deep" * 30)) in refusal(tmp_path / ("deep" * 30))


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    assert "is a file" in refusal(folder / "config.json")


@pytest.mark.parametrize("name", ["x.gguf", "owner/x-Q4_K_M.gguf", "./X.GGUF"])
def test_a_gguf_file_is_called_one(name: str) -> None:
    assert "is a GGUF file, which is not supported" in refusal(name)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path)


def test_a_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{nonsense")
    refusal(folder)


def test_a_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer" in refusal(folder)


def test_pickled_weights(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(folder)


def test_weights_beyond_what_may_be_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def map_file(file: Path, framework: str) -> None:
        raise MemoryError

    monkeypatch.setattr("safetensors.safe_open", map_file)
    assert "more than this process can map" in refusal(folder)


def test_a_corrupt_weight_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    refusal(folder)


def test_a_truncated_weight_file(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refusal(folder)


def test_a_missing_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "1 missing weights, first transformer.h.1.mlp.c_fc.weight" in refusal(folder)


def test_a_misshaped_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refusal(folder)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=1000)
    assert "do not match" in refusal(folder)


def test_an_encoder_decoder_model_is_refused_by_name(folder: Path) -> None:
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(folder)
    assert "encoder-decoder model (T5ForConditionalGeneration)" in refusal(folder)


def test_an_encoder_is_refused_by_name(folder: Path) -> None:
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(folder)
    assert "not a causal language model (BertForMaskedLM)" in refusal(folder)


def test_code_of_the_models_own_never_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    edit_json(
        folder / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert "needs its own code" in refusal(folder)
    assert not canary.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are POSIX")
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json", "chat_template.jinja"]
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refusal(folder)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", b'{"a": "caf\xe9"}', "config.json is not UTF-8 at byte 10"),
        ("config.json", b'{"a": 1,,}', "config.json is not JSON at line 1, column 9"),
        ("tokenizer_config.json", b'{"a": "caf\xe9"}', "tokenizer_config.json is not UTF-8 at byte 10"),
        ("tokenizer_config.json", b'{"chat_template": [1]}', "tokenizer_config.json is neither a text nor texts with"),
        ("chat_template.jinja", b"caf\xe9", "chat_template.jinja is not UTF-8 at byte 3"),
    ],
    ids=str,
)
def test_a_file_that_nobody_can_read_is_named(folder: Path, name: str, content: bytes, problem: str) -> None:
    (folder / name).write_bytes(content)
    assert problem in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_file_of_a_terabyte_is_not_read(folder: Path, name: str) -> None:
    os.truncate(folder / name, 2**40)
    assert "it is probably another file" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_layer": 10**9}, "asks for 1,000,000,000 layers (n_layer), more than any model (1,000)"),
        ({"model_type": "gpt_neo", "attention_types": [[["global", "local"], 10**9]]}, "layers (attention_types)"),
        ({"model_type": "mixtral", "num_local_experts": 10**6}, "asks for 1,000,000 experts"),
        ({"text_config": {"num_hidden_layers": 10**400}}, "more than 10^15 layers"),
        ({"num_labels": 10**9}, "asks for 1,000,000,000 labels"),
        ({"n_embd": 65536, "n_head": 64, "n_layer": 100}, "need "),
        ({"vocab_size": 10**12}, "need "),
        ({"n_positions": -1}, "the model has -1 positions"),
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(
    folder: Path, settings: dict[str, object], reason: str
) -> None:
    edit_json(folder / "config.json", **settings)
    assert reason in refusal(folder)


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../other.safetensors", "/etc/passwd"])
def test_an_index_leads_to_safetensors_of_the_same_folder_only(folder: Path, shard: str) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert f"points to {shard}" in refusal(folder)


def test_a_revision_of_a_folder_is_a_usage_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="--revision"):
        open_model(str(folder), revision="main")


# What a checkpoint cannot change.


def test_the_generation_config_gives_eos_and_nothing_else(folder: Path) -> None:
    settings = {"eos_token_id": [50256, 13], "num_beams": 4, "repetition_penalty": 9.0, "max_length": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = open_model(str(folder), device="cpu")
    assert model.checkpoint.eos_token_ids == {50256, 13}
    assert model.network.generation_config.num_beams is None
    assert model.network.generation_config.repetition_penalty is None


@pytest.mark.parametrize("content", ["[" * 100_000, "[1]", "nonsense", '{"eos_token_id": [[], {}, "x", -1, null]}'])
def test_a_generation_config_that_is_none_changes_nothing(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    assert open_checkpoint(str(folder)).eos_token_ids == {50256}


def test_attention_is_ours_whatever_the_config_says(folder: Path) -> None:
    edit_json(folder / "config.json", _attn_implementation="kernels-community/evil", attn_implementation="evil/kernel")
    assert open_model(str(folder), device="cpu").network.config._attn_implementation == "sdpa"


def test_a_model_without_eos_pads_with_token_zero(folder: Path) -> None:
    edit_json(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.pad_token_id == (0 if checkpoint.tokenizer.eos_token_id is None else 50256)


# Device and dtype.


def test_auto_is_float32_on_the_cpu_whatever_is_stored() -> None:
    assert choose_dtype("auto", "cpu", GPT2Config(dtype="float16")) == "float32"


def test_auto_is_what_is_stored_on_an_accelerator() -> None:
    assert choose_dtype("auto", "cuda", GPT2Config(dtype="bfloat16")) == "bfloat16"


def test_a_device_that_is_no_device_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--device toaster"):
        choose_device("toaster")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="not on this machine"):
        choose_device("cuda:0")


# The cache and the Hub.


FIND = "from batchgen.model.find import find_model; name, folder = find_model({}, say=print); print(name, folder)"
HURRY = "from batchgen.model import find; find.HUB_PATIENCE_S = 0.3; "


@pytest.mark.parametrize("repository", ["gpt2", "openai-community/gpt2"])
def test_gpt2_is_taken_from_the_cache_under_either_address(
    tmp_path: Path, folders: dict[str, Path], repository: str
) -> None:
    put_in_cache(tmp_path, repository, folders["gpt2"])
    result = run_python(FIND.format("None"), tmp_path)
    assert result.stdout.split()[0] == "gpt2"
    assert SHA in result.stdout


def test_a_cached_model_without_all_its_weights_is_not_taken(tmp_path: Path, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    put_in_cache(tmp_path, "some/model", folder)
    result = run_python(FIND.format("'some/model'"), tmp_path)
    assert "ModelError: model some/model is not in the local cache and HF_HUB_OFFLINE is set" in result.stderr


def test_without_cache_and_network_the_bundled_model_is_taken_and_said() -> None:
    said: list[str] = []
    assert find_model(None, say=said.append) == ("bundled", BUNDLED_FOLDER)
    assert len(said) == 1
    assert "bundled" in said[0]


def test_an_explicit_model_never_falls_back() -> None:
    with pytest.raises(ModelError, match="gpt2 is not in the local cache"):
        find_model("gpt2")


def test_not_cached_is_an_error_of_its_own() -> None:
    assert issubclass(NotCachedError, ModelError)


def test_a_model_is_downloaded_from_the_hub_once(tmp_path: Path, folders: dict[str, Path]) -> None:
    with fake_hub("some/model", folders["gpt2"]) as (address, requests):
        variables = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        first = run_python(FIND.format("'some/model'"), tmp_path, **variables)
        assert first.stdout.startswith("downloading some/model (")
        assert all("agent" not in request and "telemetry" not in request for request in requests)
        requests.clear()
        second = run_python(FIND.format("'some/model'"), tmp_path, **variables)
        assert second.stdout.split()[0] == "some/model"
        assert requests == []
        model = open_model(second.stdout.split()[1], device="cpu")
    assert model.checkpoint.config.n_embd == 32


def test_all_chat_templates_of_a_repository_are_downloaded_and_hashed(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("own")
    for processor in ("chat_template.json", "processor_config.json"):
        (folder / processor).write_text("{}")
    (more := folder / "additional_chat_templates").mkdir()
    (more / "tool_use.jinja").write_text("tools")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "tokenizer.json").write_text("{}")
    with fake_hub("some/model", folder) as (address, _):
        result = run_python(FIND.format("'some/model'"), tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    downloaded = Path(result.stdout.split()[-1])
    assert read_templates(downloaded) == {"default": "own", "tool_use": "tools"}
    assert not (downloaded / "onnx").exists()
    assert all((downloaded / processor).exists() for processor in ("chat_template.json", "processor_config.json"))
    before = model_facts(open_checkpoint(str(folder), weights=False))["tokenizer_sha256"]
    (more / "tool_use.jinja").write_text("other tools")
    assert model_facts(open_checkpoint(str(folder), weights=False))["tokenizer_sha256"] != before


def test_an_unknown_hub_id_is_refused(tmp_path: Path) -> None:
    with fake_hub() as (address, _):
        result = run_python(FIND.format("'no/such'"), tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    assert "there is no model no/such on the Hub" in result.stderr


def test_a_hub_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = run_python(HURRY + FIND.format("None"), tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    assert result.stdout.startswith("warning: gpt2 is not in the local cache and the Hub cannot be reached")
    assert "bundled" in result.stdout.splitlines()[-1]
