"""Small tokenizers of each kind that chat models have, with the special tokens of popular chat templates."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from batchgen.model.chat import Chat, make_chat

TEMPLATES = Path(__file__).parent.parent / "model" / "chat_templates"
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
# For each template: special tokens, the first and last of which are bos and eos; added tokens that are not special.
TOKENS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "chatml": (CHATML, ()),
    "llama2": (("<s>", "</s>"), ()),
    "llama3": (("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"), ()),
    "gemma": (("<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<eos>"), ("\n\n", "<h1>")),
    "mistral": (("<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
                 "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "</s>"), ()),
    "phi3": (("<s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"), ()),
    "phi4_mini": (("<s>", "<|end|>", "<|endoftext|>"), ("<|user|>", "<|assistant|>", "<|system|>")),
    "qwen3": (("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
              ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")),
    "qwen3_special": (("<|endoftext|>", "<|im_start|>", "<think>", "</think>", "<|im_end|>"), ()),
    "harmony": (("<|startoftext|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>"),
                ()),
    "deepseek": (("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>",
                  "<｜tool▁outputs▁begin｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
                  "<｜tool▁outputs▁end｜>", "<think>", "</think>", "<｜end▁of▁sentence｜>"), ()),
    "granite": (("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), ()),
    "smollm3": (("<|begin_of_text|>", "<|im_start|>", "<|im_end|>"), ("<think>", "</think>")),
}  # fmt: skip
CORPUS = [
    "The cat sat on the mat, and then it ran away from home to find some food.",
    "What is 12 + 30? It is 42: im_start im_end end_of_turn INST assistant user system think start end",
    "def f(x):\n    return x  # naïve café, 東京 \U0001f600",
] * 4


def chat_of(tokenizer: PreTrainedTokenizerFast) -> Chat:
    """Return a `Chat` with the tokenizer's chat template."""
    return make_chat({"default": tokenizer.chat_template}, lambda: tokenizer)


@cache
def make_chat_tokenizer(template: str, kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of a `kind` (bytes, bytefallback, unigram) with the tokens of a template."""
    special, added = TOKENS[template]
    backend = KINDS[kind](special)
    backend.add_special_tokens(list(special))
    backend.add_tokens([AddedToken(token, normalized=False) for token in added])
    ids = {token: backend.token_to_id(token) for token in special}
    backend.post_processor = processors.TemplateProcessing(  # adds a bos, as many do; no chat row may get it
        single=f"{special[0]} $A", special_tokens=[(special[0], ids[special[0]])]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[0], eos_token=special[-1])
    source = template.removesuffix("_special")
    tokenizer.chat_template = (TEMPLATES / f"{source}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    return tokenizer


def _bytes(special: tuple[str, ...]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def _bytefallback(special: tuple[str, ...]) -> Tokenizer:
    """Like Llama 2's: a word begins with ▁, and so does every text between two special tokens."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    first = ["<unk>", *special, *fallback]
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=first, show_progress=False))
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in fallback]
    return Tokenizer.from_str(json.dumps(state))


def _unigram(special: tuple[str, ...]) -> Tokenizer:
    """Like SentencePiece's: special tokens are also pieces of the model, and only a text's first word gets a ▁."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<unk>", *special], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


KINDS = {"bytes": _bytes, "bytefallback": _bytefallback, "unigram": _unigram}
