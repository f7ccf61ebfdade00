"""Check a user's own loop against unpadded `generate`: any callable from prompts to texts or token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import replace
from functools import partial
from typing import Any

from batchgen.errors import InputError
from batchgen.model import Model, open_model
from batchgen.model.padding import encode, pad
from batchgen.model.stops import decode_output
from batchgen.proof.mistakes import generate_as_is
from batchgen.proof.verify.controls import pick_rows
from batchgen.proof.verify.facts import ErrorBound, RowCheck
from batchgen.proof.verify.loops import LoopRecorder, compare_loop
from batchgen.proof.verify.oracle import ERROR_ROWS, Oracle, measure_error
from batchgen.proof.verify.rows import Departure, find_departure, to_check
from batchgen.records import Request, SamplingParams, Sequence


def check_padding(
    call: Callable[[list[str]], Iterable[Any]],
    prompts: Iterable[str],
    model: str | Model | None = None,
    *,
    max_new_tokens: int = 32,
    device: str = "auto",
    dtype: str = "float32",
    bits: bool = False,
) -> list[RowCheck]:
    """Check your own loop: does each prompt get the same tokens as from unpadded greedy `generate` alone?

    `call` takes the prompts and returns a text or token ids (a list, or a row of a tensor) for each: the generated
    part, or the whole row with its prompt and pads. It must be greedy, generate up to `max_new_tokens` tokens, and use
    the same model: a name, a folder or a Hub id. `dtype` is the dtype it computes in. The oracle uses float32; how far
    another may differ is measured. The verdict on each row is identical, rounding or bug.

    With `bits`, up to eight prompts also run one at a time, three at a time, shuffled, and after a shared opening:
    `bits` of their checks is then "bit-identical", or names the first decoder layer with different numbers, and by how
    much they differ. `call` must then run the network of `model`, a `Model`. Raises `BatchgenError`.

    >>> checks = check_padding(lambda prompts: [" a very nice dog"], ["My dog is"], "bundled", max_new_tokens=4)
    >>> [check.verdict for check in checks]
    ['identical']
    """
    prompts = list(prompts)
    own = model if isinstance(model, Model) else open_model(model, device=device, dtype=dtype)
    oracle = Oracle(own if own.dtype_name == "float32" else _in_float32(own))
    sequences = _encode(oracle, prompts, max_new_tokens)
    picked = pick_rows(sequences) if bits else []
    recorder = LoopRecorder(own, picked)
    given = recorder.run(call, list(prompts), picked) if bits else call(list(prompts))
    outputs = [output.tolist() if hasattr(output, "tolist") else output for output in given]
    if len(outputs) != len(prompts):
        raise InputError(f"the callable gave {len(outputs)} outputs for {len(prompts)} prompts")
    checks = _check_outputs(oracle, own, sequences, outputs)
    encode_more = partial(_encode, oracle, max_new_tokens=max_new_tokens)
    found = compare_loop(call, recorder, own, picked, encode_more) if bits else {}
    return [replace(check, bits=found.get(check.index)) for check in checks]


def _check_outputs(oracle: Oracle, own: Model, sequences: list[Sequence], outputs: list[Any]) -> list[RowCheck]:
    bound = measure_error(oracle, own, pick_rows(sequences, ERROR_ROWS))
    if all(isinstance(output, str) for output in outputs):
        texts = _without_prompts(outputs, [row.request.prompt for row in sequences])
        return [_check_text(oracle, row, text, bound) for row, text in zip(sequences, texts, strict=True)]
    tokens = _new_tokens(outputs, sequences)
    return [_check_tokens(oracle, row, ids, bound) for row, ids in zip(sequences, tokens, strict=True)]


def _in_float32(model: Model) -> Model:
    return open_model(str(model.checkpoint.folder), device=str(model.device), dtype="float32")


def _encode(oracle: Oracle, prompts: list[str], max_new_tokens: int) -> list[Sequence]:
    checkpoint = oracle.model.checkpoint
    params = SamplingParams(max_new_tokens=max_new_tokens)
    requests = [Request(index, index, prompt, params) for index, prompt in enumerate(prompts)]
    sequences = encode(requests, checkpoint.codec, n_positions=checkpoint.n_positions)
    for sequence in sequences:
        if sequence.error:
            raise InputError(f"prompts[{sequence.request.index}]: {sequence.error}")
    return sequences


def _without_prompts(texts: list[str], prompts: list[str]) -> list[str]:
    """The generated texts; if every text begins with its prompt, the prompts are removed."""
    if all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True)):
        return [text.removeprefix(prompt) for text, prompt in zip(texts, prompts, strict=True)]
    return texts


def _new_tokens(outputs: list[list[int]], sequences: list[Sequence]) -> list[list[int]]:
    """The generated tokens; if every output begins with its prompt or padding and its prompt, both are removed."""
    ends = [_end_of_prompt(ids, row.input_ids) for ids, row in zip(outputs, sequences, strict=True)]
    if None in ends:
        return [list(ids) for ids in outputs]
    return [ids[end:] for ids, end in zip(outputs, ends, strict=True)]


def _end_of_prompt(token_ids: Rows[int], prompt: list[int]) -> int | None:
    """The position after the prompt in a row that begins with it, or with one repeated token before it; else None."""
    for start in range(len(token_ids) - len(prompt) + 1):
        if list(token_ids[start : start + len(prompt)]) == prompt:
            return start + len(prompt)
        if token_ids[start] != token_ids[0]:
            break
    return None


def _check_tokens(oracle: Oracle, sequence: Sequence, token_ids: list[int], bound: ErrorBound) -> RowCheck:
    """Check a row's tokens up to its eos against the greedy ones; ending early counts as choosing eos there."""
    eos = sorted(oracle.model.checkpoint.eos_token_ids)
    most = sequence.sampling.max_new_tokens
    ends = [place for place, token in enumerate(token_ids) if token in eos]
    token_ids = token_ids[: min([most, *(place + 1 for place in ends)])]
    row = replace(sequence, output_ids=token_ids)
    expected = oracle.logits_of(row)  # [N + 1, V]
    if len(token_ids) < most and not ends and eos:
        best_eos = max(eos, key=lambda token: float(expected[-1, token]))
        return to_check(oracle, row, find_departure(expected, [*token_ids, best_eos]), bound, given=token_ids)
    return to_check(oracle, row, find_departure(expected[: len(token_ids)], token_ids), bound, given=token_ids)


def _check_text(oracle: Oracle, sequence: Sequence, text: str, bound: ErrorBound) -> RowCheck:
    """Check a text against unpadded `generate`; the differing step is the first one whose token is not in the text."""
    model = oracle.model
    alone = pad([sequence], model.checkpoint.pad_token_id)
    [output_ids] = generate_as_is(model, alone, sequence.sampling.max_new_tokens)
    row = replace(sequence, output_ids=output_ids)
    step = _parting_step(oracle, row, text)
    if step is None:
        return to_check(oracle, row, None, bound)
    logits = oracle.logits_of(row)[step]  # [V]
    first, second = logits.topk(2).values.tolist()
    return to_check(oracle, row, Departure(step, first - second, output_ids[step], first - second), bound)


def _parting_step(oracle: Oracle, row: Sequence, text: str) -> int | None:
    """The first step whose token is not in `text`, or None; `text` may be longer if the row hit its token limit."""
    tokenizer = oracle.model.checkpoint.codec
    for step in range(row.num_output_tokens):
        so_far = decode_output(tokenizer, replace(row, output_ids=row.output_ids[: step + 1]))
        if not text.startswith(so_far.rstrip("\ufffd")):  # a partial character, which the next token completes
            return step
    is_over = row.output_ids[-1] in oracle.model.checkpoint.eos_token_ids
    return row.num_output_tokens - 1 if is_over and len(text) > len(so_far) else None
