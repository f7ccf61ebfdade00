"""Turn rows into passages: which of a row's tokens are scored, and after which context.

Follows lm-evaluation-harness: prompt and continuation are encoded together, trailing spaces of the prompt belong to
the continuation, and a text without a prompt follows the tokenizer's BOS, or eos if it has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from batchgen.model.added_ids import added_ids
from batchgen.model.chat import Chat
from batchgen.model.chat.rows import WARNING
from batchgen.model.guarded import each_or_why
from batchgen.records import Conversation, Message, Passage, Request, Sequence, TooLong

if TYPE_CHECKING:
    from batchgen.model.checkpoint import Checkpoint

TokenIds = dict[str, list[int] | str]  # by text; a string says why the tokenizer fails on it


@dataclass(frozen=True, slots=True)
class PassageEncoder:
    """Turns rows into passages for one model. `stride` applies to texts longer than its context (default: half)."""

    checkpoint: Checkpoint
    chat: Chat
    too_long: TooLong = "error"
    parse_special: bool = False
    stride: int | None = None

    def encode(self, requests: list[Request]) -> list[Sequence]:
        """A sequence for each row, in order; a row that cannot be scored comes back failed."""
        rows = [self._with_conversation(request) for request in requests]
        ids = self._tokenize(rows)
        return [self._row(row, ids) for row in rows]

    def _row(self, request: Request, ids: TokenIds) -> Sequence:
        passages: tuple[Passage, ...] = ()
        try:
            if request.error:
                raise ValueError(request.error)
            if request.conversation:
                request, passages = self._replies(request)
            elif request.replies:
                whole = [self._split(request.prompt, reply) for reply in request.replies]
                passages = tuple(self._continuation(*parts, ids) for parts in whole)
            else:
                passages = tuple(self._windows(_known(ids, request.prompt)))
            fitted = tuple(self._fitted(passage) for passage in passages)
        except ValueError as problem:
            failed = Sequence(request, 0, [])
            failed.fail(str(problem))
            return failed
        cut = max(len(whole.fed) - len(passage.fed) for whole, passage in zip(passages, fitted, strict=True))
        longest = max(fitted, key=lambda passage: len(passage.token_ids))
        return Sequence(request, 0, list(longest.fed), passages=fitted, num_truncated_tokens=cut)

    # From texts to token ids.

    def _tokenize(self, rows: list[Request]) -> TokenIds:
        """The ids of each text that is needed, without the tokenizer's added tokens."""
        texts: dict[str, None] = {}
        for row in rows:
            if row.error or row.conversation:
                continue
            if not row.replies:
                texts[row.prompt] = None
            for reply in row.replies:
                context, rest = self._split(row.prompt, reply)
                texts |= {context: None, context + rest: None}
        return dict(zip(texts, each_or_why(list(texts), self._token_ids), strict=True))

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.checkpoint.codec(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            split_special_tokens=not self.parse_special,
            verbose=False,
        )
        return list(encoded["input_ids"])

    @staticmethod
    def _split(prompt: str, reply: str) -> tuple[str, str]:
        """Split into the prompt without its trailing spaces, and those spaces with the reply."""
        context = prompt.rstrip()
        return context, prompt[len(context) :] + reply

    def _continuation(self, context: str, rest: str, ids: TokenIds) -> Passage:
        whole, start = _known(ids, context + rest), len(_known(ids, context))
        front = self._front(whole) if not start else self._own_front(whole)
        if len(whole) <= start:
            raise ValueError("the continuation has no tokens of its own to score")
        return self._passage([*front, *whole], len(front) + start)

    def _own_front(self, ids: list[int]) -> list[int]:
        """The tokenizer's leading tokens, or nothing if the text itself already begins with them."""
        front = list(added_ids(self.checkpoint.codec).front)
        return [] if self.parse_special and front and ids[: len(front)] == front else front

    def _front(self, ids: list[int]) -> list[int]:
        """The context of a text without a prompt: the tokenizer's leading tokens, otherwise `first_token_id`."""
        if front := added_ids(self.checkpoint.codec).front:
            return self._own_front(ids) if len(ids) > len(front) else list(front)
        mark = self.first_token_id
        return [] if self.parse_special and ids[:1] == [mark] and len(ids) > 1 else [mark]

    @property
    def first_token_id(self) -> int:
        """The token that precedes the first token of a text: BOS, or the end token if there is no BOS."""
        codec = self.checkpoint.codec
        if (found := _bos_id(codec)) is not None:
            return found
        end = self.checkpoint.pad_token_id
        [name] = codec.convert_ids_to_tokens([end])
        self.chat.say_once(f"the model has no BOS: texts without a prompt are scored after {name}, its end token")
        return end

    def _passage(self, ids: list[int], start: int) -> Passage:
        """Make a passage. Raises `ValueError` if nothing would be scored, or the model lacks one of the tokens."""
        if not ids[start:]:
            raise ValueError("the text is empty")
        if max(ids) >= self.checkpoint.vocab_size:
            raise ValueError(f"the tokenizer gives token {max(ids)}, which the model does not have")
        return Passage(tuple(ids), max(start, 1))

    def _windows(self, ids: list[int]) -> Iterator[Passage]:
        """A text in as many windows as needed; each but the first scores its last `stride` tokens."""
        front, most = self._front(ids), self.checkpoint.n_positions
        ids, start = [*front, *ids], max(len(front), 1)
        end = len(ids) if most is None else min(len(ids), most + 1)
        yield self._passage(ids[:end], start)
        while end < len(ids):
            assert most is not None
            scored = min(self.stride or max(1, most // 2), most, len(ids) - end)
            end += scored
            window = ids[end - most - 1 : end]
            yield self._passage(window, len(window) - scored)

    def _fitted(self, passage: Passage) -> Passage:
        """Truncate a passage that is too long for the model on the left. Raises `ValueError` if that is not allowed."""
        most = self.checkpoint.n_positions
        if most is None or len(passage.fed) <= most:
            return passage
        surplus = len(passage.fed) - most
        front = len(added_ids(self.checkpoint.codec).front)
        if self.too_long == "error" or passage.start - surplus <= front:
            number = f"{passage.start} tokens of prompt and {len(passage.scored)} to score"
            raise ValueError(
                f"{number} are more than the model's {most} positions (shorten it, or --too-long truncate)"
            )
        ids = (*passage.token_ids[:front], *passage.token_ids[front + surplus :])
        return Passage(ids, passage.start - surplus)

    # Conversations.

    def _with_conversation(self, request: Request) -> Request:
        """A row with its conversation; with `--chat`, a plain prompt with replies becomes a user message."""
        if request.error or request.conversation or not request.replies:
            return request
        conversation = self.chat.conversation_of(request)
        if conversation is None and self.chat.has_template and self.chat.options.chat is None:
            self.chat.say_once(WARNING)
        return replace(request, conversation=conversation)

    def _replies(self, request: Request) -> tuple[Request, tuple[Passage, ...]]:
        """The passages of each given reply, or of the conversation's last one, and the row with its rendered prompt."""
        asked = request.conversation
        assert asked
        if not request.replies and asked.messages[-1].role != "assistant":
            role = asked.messages[-1].role
            raise ValueError(f"the messages end with {role}: only a reply of the assistant can be scored")
        ends = [(*asked.messages, Message("assistant", reply)) for reply in request.replies] or [asked.messages]
        told = [
            replace(asked, messages=messages, add_generation_prompt=None, continue_final_message=True)
            for messages in ends
        ]
        found = [self._reply(conversation) for conversation in told]
        return replace(request, prompt=found[0][0]), tuple(passage for _, passage in found)

    def _reply(self, conversation: Conversation) -> tuple[str, Passage]:
        """The text before the last message, and the passage that scores the message without the end-of-turn tokens."""
        [row] = self.chat.encode([conversation], parse_special=self.parse_special)
        if row.error:
            raise ValueError(row.error)
        said = conversation.messages[-1].text
        text = said if row.prompt.endswith(said) else said.strip()
        start = row.prompt.rfind(text)
        if not text or start < 0:
            raise ValueError("the last reply is empty" if not text else "the chat template changes the last reply")
        offsets = self.chat.offsets(row.prompt, row.input_ids, conversation)
        first = next((place for place, (_, end) in enumerate(offsets) if end > start), None)
        if first is None:
            raise ValueError("cannot tell which tokens belong to the last reply")
        return row.prompt[:start], self._passage(list(row.input_ids), first)


def _known(ids: TokenIds, text: str) -> list[int]:
    """The ids of a text. Raises `ValueError` if the tokenizer fails on it."""
    found = ids[text]
    if isinstance(found, str):
        raise ValueError(found)
    return found


@lru_cache(maxsize=1)
def _bos_id(codec: Any) -> int | None:
    """Return the id of BOS, if the vocabulary has one. Reading a large vocabulary takes 30 ms, and each text asks."""
    bos = codec.special_tokens_map.get("bos_token")
    found: int | None = codec.get_vocab().get(bos) if bos else None
    return found
