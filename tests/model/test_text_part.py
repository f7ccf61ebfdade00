"""The text part of a model that also processes images runs as a text model, with the whole model's logits for texts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

import batchgen
from batchgen import open_model
from batchgen.errors import ModelError
from batchgen.model import open_checkpoint
from batchgen.model.find import BUNDLED_FOLDER
from tests.support.families import CONV, EIGHT, GROUPED

VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 28, "patch_size": 14, **VISION}
TURNED = {**EIGHT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
SEEING = {"depth": 1, "hidden_size": 32, "num_heads": 2}
WHOLES: dict[str, dict[str, Any]] = {
    "mistral3": {
        "text_config": {"model_type": "mistral", **EIGHT}, "vision_config": {"model_type": "pixtral", **IMAGE},
    },
    "llava": {
        "text_config": {"model_type": "llama", **EIGHT}, "vision_config": {"model_type": "clip_vision_model", **IMAGE},
        "tie_word_embeddings": False,
    },
    "qwen2_vl": {"text_config": TURNED, "vision_config": {"embed_dim": 32, **SEEING}},
    "qwen2_5_vl": {
        "text_config": TURNED,
        "vision_config": {"out_hidden_size": 32, "intermediate_size": 32, "fullatt_block_indexes": [0], **SEEING},
    },
    "qwen3_vl": {
        "text_config": TURNED,
        "vision_config": {
            "out_hidden_size": 32, "intermediate_size": 32, "deepstack_visual_indexes": [0], **SEEING,
        },
    },
    "internvl": {
        "text_config": {"model_type": "qwen2", **EIGHT},
        "vision_config": {**IMAGE, "image_size": [28, 28], "patch_size": [14, 14]}, "tie_word_embeddings": False,
    },
    "smolvlm": {
        "text_config": {"model_type": "llama", **EIGHT}, "vision_config": IMAGE, "tie_word_embeddings": False,
    },
    "lfm2_vl": {
        "text_config": {"model_type": "lfm2", **CONV, **GROUPED},
        "vision_config": {"patch_size": 14, "num_patches": 4, **VISION}, "projector_hidden_size": 32,
    },
    "llama4": {
        "text_config": {"intermediate_size_mlp": 64, "num_local_experts": 2, "attn_temperature_tuning": False, **EIGHT},
        "vision_config": {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32, **IMAGE},
    },
    "gemma3": {
        "text_config": {"query_pre_attn_scalar": 8, **EIGHT}, "vision_config": IMAGE, "mm_tokens_per_image": 4,
    },
}  # fmt: skip


def save_whole(name: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    network = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name](**WHOLES[name])).eval()
    network.save_pretrained(folder)
    for path in BUNDLED_FOLDER.glob("tokenizer*"):
        shutil.copy(path, folder)
    return network


@pytest.mark.parametrize("name", WHOLES)
def test_a_text_part_gives_a_text_what_the_whole_gives_it(name: str, tmp_path: Path) -> None:
    whole = save_whole(name, tmp_path)
    model = open_model(str(tmp_path), device="cpu")
    ids = torch.tensor([model.checkpoint.tokenizer("the rain in Spain falls mainly")["input_ids"]])
    with torch.inference_mode():
        expected, found = (
            network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for network in (whole, model.network)
        )
    assert torch.equal(found, expected)
    results = batchgen.generate(["the rain", "my dog is very happy"], model, max_new_tokens=2)
    assert [(result.num_output_tokens, result.error) for result in results] == [(2, None)] * 2


@pytest.mark.parametrize("name", ["Glm4v", "Mllama"])
def test_a_text_part_that_cannot_run_alone_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    config = CONFIG_MAPPING[name.lower()](architectures=[f"{name}ForConditionalGeneration"])
    config.save_pretrained(tmp_path)
    for path in BUNDLED_FOLDER.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    with pytest.raises(ModelError, match="use a text-only model of the same family"):
        open_checkpoint(str(tmp_path), weights=False)
