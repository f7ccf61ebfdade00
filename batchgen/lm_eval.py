"""lm-evaluation-harness on batchgen: `python -m batchgen.lm_eval --model batchgen --model_args pretrained=…`.

Registers the model `batchgen`, then runs lm-eval's own command line. Token ids, windows and stops are those of
lm-eval's `hf` model, so that both give the same numbers; batchgen decides which rows run together.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from batchgen.__main__ import leave_working_folder

    leave_working_folder()

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from batchgen.engines import Engine, finish_all, make_engine, make_scoring_engine
from batchgen.errors import BatchgenError, ModelError, UsageError
from batchgen.machine.limits import parse_memory
from batchgen.model import open_model
from batchgen.model.chat import Chat, open_chat
from batchgen.model.guarded import TokenizerFailure
from batchgen.model.stops import decode_output
from batchgen.records import (
    ChatOptions,
    Conversation,
    EngineOptions,
    FieldError,
    Message,
    Passage,
    Request,
    SamplingParams,
    Sequence,
)

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    line = f"{missing.name} is not installed: pip install 'batchgen[lm-eval]'"
    if __name__ == "__main__":
        sys.exit(f"error: {line}")
    raise ModuleNotFoundError(line, name=missing.name) from None

LONGEST = 2048  # tokens, for a model without a limit; lm-eval's default
MOST_NEW_TOKENS = 256  # if a task does not set it; lm-eval's default
# What a task may set for choosing tokens; the first group only has an effect if the task samples.
SAMPLED = {"temperature", "top_k", "top_p", "min_p", "seed"}
CHOOSING = {"repetition_penalty", "min_new_tokens", "no_repeat_ngram_size"}
Scored = tuple[float, bool]
Pair = tuple[Any, list[int], list[int]]  # lm-eval's key for a request, and the tokens of context and continuation


@register_model("batchgen")
class EvaluatedModel(TemplateLM):
    """A model for lm-eval. Its engines are created when a task first needs them.

    `--batch_size` 1, lm-eval's default, leaves the number of rows to batchgen; a larger number is an upper bound. No
    score depends on it. Raises `BatchgenError` for what batchgen does not support.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = MOST_NEW_TOKENS,
        memory: str | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        **unknown: object,
    ) -> None:
        super().__init__()
        if trust_remote_code:
            raise UsageError("batchgen never runs code that comes with a model: leave out trust_remote_code")
        if unknown:
            raise UsageError(f"--model_args: the model batchgen has no argument {min(unknown)}")
        self.model = open_model(pretrained, revision=revision, device=_device(device), dtype=dtype, say=_say)
        self.checkpoint = self.model.checkpoint
        self.tokenizer = self.checkpoint.tokenizer
        self.max_length = max_length or self.checkpoint.n_positions or LONGEST
        self.max_gen_toks = max_gen_toks
        self.add_bos_token = add_bos_token
        self.think_end_token = think_end_token
        self._prefix_token_id = prefix_token_id
        self._options = EngineOptions(
            batch_size=_most_rows(batch_size, max_batch_size), memory=parse_memory(memory) if memory else None
        )
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._chat_arguments = {**(chat_template_args or {}), **thinking}
        self._chat = self._open_chat(None)
        self._engines: dict[str, Engine] = {}

    # Tokens.

    @property
    def eot_token_id(self) -> int:
        return self.checkpoint.pad_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands in for a missing context."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Encode as `hf` does: with BOS if the tokenizer or `add_bos_token` adds it, and never twice."""
        if add_special_tokens is None and string.startswith(self.checkpoint.codec.decode([self.prefix_token_id])):
            add_special_tokens = False
        chosen = self.add_bos_token if add_special_tokens is None else add_special_tokens
        encoded = self.checkpoint.codec(
            string,
            add_special_tokens=True if chosen is None else chosen,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            split_special_tokens=False,
            verbose=False,
        )
        return list(encoded["input_ids"])

    # Scores.

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return each text's log-likelihood, summed over all of its windows."""
        windows = [
            [(None, *make_disjoint_window(window)) for window in self._windows(*request.args)] for request in requests
        ]
        found = iter(self._loglikelihood_tokens([pair for pairs in windows for pair in pairs], disable_tqdm))
        sums = [sum(next(found)[0] for _ in pairs) for pairs in windows]
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        yield from get_rolling_token_windows(
            self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )

    def _loglikelihood_tokens(self, requests: list[Pair], disable_tqdm: bool = False, **_: object) -> list[Scored]:
        """Score requests with the same context as the choices of one row, whose prompt is computed once."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for place, (_text, context, _continuation) in enumerate(requests):
            rows.setdefault(tuple(context), []).append(place)
        found: dict[int, Scored] = {}
        groups = list(rows.values())
        sequences = [self._scored_row(at, [requests[place] for place in places]) for at, places in enumerate(groups)]
        for row in self._finish("scoring", sequences, len(requests), disable_tqdm):
            for place, score in zip(groups[row.request.index], _scores(row), strict=True):
                found[place] = score
                if requests[place][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[place][0], score)
        return [found[place] for place in range(len(requests))]

    def _scored_row(self, index: int, pairs: list[Pair]) -> Sequence:
        passages = tuple(self._passage(context, continuation) for _, context, continuation in pairs)
        longest = max(passages, key=lambda passage: len(passage.fed))
        return Sequence(Request(index, str(index), "", scored="choices"), 0, list(longest.fed), passages=passages)

    def _passage(self, context: list[int], continuation: list[int]) -> Passage:
        """Return the passage; if it is too long, the context loses its beginning."""
        if not 0 < len(continuation) <= self.max_length:
            raise UsageError(f"a continuation has {len(continuation)} tokens: 1 to {self.max_length} can be scored")
        whole = tuple([*context, *continuation][-(self.max_length + 1) :])
        return Passage(whole, max(1, len(whole) - len(continuation)))

    # Texts.

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate the text after each context, up to its first stop."""
        rows = [self._prompted_row(index, *request.args) for index, request in enumerate(requests)]
        texts: dict[int, str] = {}
        for row in self._finish("text", rows, len(requests), disable_tqdm):
            written, place = decode_output(self.checkpoint.codec, row), row.request.index
            texts[place] = postprocess_generated_text(written, list(row.sampling.stop), self.think_end_token)
            self.cache_hook.add_partial("generate_until", requests[place].args, texts[place])
        return [texts[index] for index in range(len(requests))]

    def _prompted_row(self, index: int, context: str, said: dict[str, Any]) -> Sequence:
        sampling = self._sampling(said)
        if (room := self.max_length - sampling.max_new_tokens) < 1:
            raise UsageError(f"{sampling.max_new_tokens} new tokens leave no room for a context in {self.max_length}")
        return Sequence(Request(index, str(index), context, sampling), 0, self.tok_encode(context)[-room:])

    def _sampling(self, said: dict[str, Any]) -> SamplingParams:
        given = normalize_gen_kwargs(said, self.max_gen_toks)
        stops = handle_stop_sequences(given.pop("until"), eos=self.checkpoint.codec.decode([self.eot_token_id]))
        most, samples = given.pop("max_gen_toks"), given.pop("do_sample") and given.get("temperature", 0.0) > 0
        if unknown := given.keys() - SAMPLED - CHOOSING:
            raise UsageError(f"batchgen has no {min(unknown)} to generate with (of the task, or --gen_kwargs)")
        known = CHOOSING | SAMPLED if samples else CHOOSING
        chosen = {name: value for name, value in given.items() if name in known}
        return SamplingParams(max_new_tokens=most, stop=tuple(filter(None, stops)), **chosen)

    # Conversations.

    def _open_chat(self, template: str | None) -> Chat:
        return open_chat(self.checkpoint, ChatOptions(template=template, arguments=self._chat_arguments), say=_say)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template that `--apply_chat_template` selects, by name or the model's own."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            self._chat = self._open_chat(chat_template)
        if not self._chat.has_template:
            raise UsageError(f"{self.checkpoint.name} has no chat template: leave out --apply_chat_template")
        return self._chat.template.source_for(Conversation(()))

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation. If the template rejects system messages, they are left out."""
        messages = tuple(Message(turn["role"], turn["content"]) for turn in chat_history)
        conversation = Conversation(
            messages, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt
        )
        try:
            return self._chat.template.render(conversation)
        except ValueError as error:
            others = tuple(message for message in messages if message.role != "system")
            if others == messages:
                raise ModelError(str(error)) from None
            self._chat.say_once("the chat template takes no system message: it is left out")
            return self._chat.template.render(replace(conversation, messages=others))

    def _finish(self, kind: str, rows: Iterable[Sequence], number: int, is_quiet: bool) -> Iterator[Sequence]:
        """Yield every row when it is finished. Raises `ModelError` if one fails: lm-eval has no place for errors."""
        make = make_scoring_engine if kind == "scoring" else make_engine
        engine = self._engines[kind] = self._engines.get(kind) or make(self.model, self._options, say=_say)
        with tqdm(total=number, disable=is_quiet, desc=f"batchgen: {kind}") as bar:
            for row in finish_all(engine, rows):
                if row.error is not None:
                    raise ModelError(row.error)
                bar.update(max(1, len(row.passages)))
                yield row

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval records about the model in its results."""
        return {"model_num_parameters": self.model.network.num_parameters(), "model_dtype": self.model.dtype_name}


def _scores(row: Sequence) -> Iterator[Scored]:
    """Yield for each passage the sum of its log-probabilities (float64), and whether all tokens are the likeliest."""
    for place, passage in enumerate(row.passages):
        found = row.scores[place]
        is_greedy = all(entry.top[0][0] == token for entry, token in zip(found, passage.scored, strict=True))
        yield sum(entry.logprob for entry in found), is_greedy


def _device(asked: str | None) -> str:
    """Return the device; lm-eval's default is `cuda:0` even on machines without one."""
    return "auto" if asked in (None, "cuda:0") else str(asked)


def _most_rows(batch_size: int | str | None, max_batch_size: int | None) -> int | None:
    """Return the upper bound that the user asked for."""
    asked = str(batch_size or "auto").partition(":")[0]
    if asked in ("auto", "1"):
        return max_batch_size
    if not asked.isdecimal():
        raise UsageError(f"--batch_size {batch_size} is neither a number nor auto")
    return int(asked)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    """Run lm-eval's command line with the model `batchgen` registered."""
    try:
        cli_evaluate()
    except (BatchgenError, FieldError, TokenizerFailure) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
