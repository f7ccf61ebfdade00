"""A chat template and its tokenizer: conversations to text and token ids, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from batchgen.errors import UsageError
from batchgen.model.chat.control import ControlTokens
from batchgen.model.chat.template import ChatTemplate, choose_template
from batchgen.model.chat.turns import Turns, find_marks, find_turns
from batchgen.model.find import Say
from batchgen.records import LONGEST_PROMPT, ChatOptions, Conversation, Message, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from batchgen.model.checkpoint import Checkpoint

NO_TEMPLATE = "and the model has none: give one with --chat-template FILE"
NOTHING_SAID = ChatOptions()


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text and as token ids, or why it is neither."""

    prompt: str = ""
    input_ids: tuple[int, ...] = ()
    error: str | None = None


class Chat:
    """What makes prompts of conversations: a chat template, if the model has one, and its tokenizer."""

    def __init__(
        self,
        template: ChatTemplate | None,
        tokenizer: PreTrainedTokenizerBase,
        options: ChatOptions = NOTHING_SAID,
        say: Say = lambda line: None,
        eos_token_ids: frozenset[int] | None = None,
    ) -> None:
        self._eos_token_ids = eos_token_ids
        self._template = template
        self._say = say
        self._said: set[str] = set()
        self.tokenizer = tokenizer
        self.options = options

    @property
    def chosen_templates(self) -> Mapping[str, str] | None:
        """The template that the run asks for; None for the model's own."""
        return self._template.sources if self._template and self.options.template is not None else None

    @property
    def digest(self) -> str | None:
        """What tells whether the template that the run asks for is still the same."""
        templates = self.chosen_templates
        return sha256("\0".join(templates.values()).encode()).hexdigest() if templates else None

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @property
    def template(self) -> ChatTemplate:
        if self._template is None:
            raise ValueError(
                "messages need a chat template, and the model has none: give one with --chat-template FILE"
            )
        return self._template

    def conversation_of(self, request: Request) -> Conversation | None:
        """A row's messages, or with `--chat` its prompt as a user's message; None for a plain prompt."""
        if request.conversation is None and self.options.wraps_prompts:
            return Conversation((Message("user", request.prompt),))
        return request.conversation

    def with_system(self, conversation: Conversation) -> Conversation:
        """The run's system message before a conversation that has none of its own."""
        if self.options.system is None or conversation.messages[0].role in ("system", "developer"):
            return conversation
        return replace(conversation, messages=(Message("system", self.options.system), *conversation.messages))

    def say_once(self, line: str) -> None:
        """What a person should know; once in a run."""
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    @cached_property
    def turns(self) -> Turns | None:
        return find_turns(self._template) if self._template else None

    @cached_property
    def reasoning_marks(self) -> tuple[str, str] | None:
        """What opens and closes a thought, where the template or the tokenizer has marks for it."""
        source = "\0".join(self._template.sources.values()) if self._template else ""
        return find_marks(source, {token.content for token in self.tokenizer.added_tokens_decoder.values()})

    @cached_property
    def control(self) -> ControlTokens:
        """Special tokens, and added ones that open or close turns without being declared special."""
        glue = self.turns.glue if self.turns else ""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        marks = self.reasoning_marks or ()
        return ControlTokens(self.tokenizer, frozenset(token for token in added - {*marks} if token in glue))

    def encode(self, conversations: list[Conversation], *, parse_special: bool = False) -> list[Rendered]:
        """Text and token ids of each conversation, the run's system message before it, in order.

        Text that looks like a special token stays text, unless `parse_special` is set.
        """
        rows = [self._render(self.with_system(conversation), parse_special) for conversation in conversations]
        texts = [row.prompt for row in rows if not row.error and not row.input_ids]
        ids = iter(self._tokenize(texts, parse_special))
        return [row if row.error or row.input_ids else Rendered(row.prompt, tuple(next(ids))) for row in rows]

    def _render(self, conversation: Conversation, parse_special: bool) -> Rendered:
        """The text; token ids too where they need more than the tokenizer."""
        try:
            if parse_special or not self.control.is_in(conversation):
                return _bounded(self.template.render(conversation))
            rendered = self._render_hidden(conversation)
            bounded = _bounded(self.control.show(rendered))
            return bounded if bounded.error else Rendered(bounded.prompt, tuple(self.control.encode(rendered)))
        except ValueError as problem:
            return Rendered(error=str(problem))

    def _render_hidden(self, conversation: Conversation) -> str:
        """Rendered with text of special tokens hidden.

        Marks of a thought in the assistant's own messages are shown to a template that takes the thought out.
        """
        rendered = self.template.render(self.control.hide(conversation))
        marks = tuple(mark for mark in self.reasoning_marks or () if mark in self.control.ids)
        said = (message.text for message in conversation.messages if message.role == "assistant")
        if marks and any(mark in text for text in said for mark in marks):
            try:
                shown = self.template.render(self.control.hide(conversation, keep=marks))
            except ValueError:
                return rendered
            return shown if self.control.own(shown) == self.control.own(rendered) else rendered
        return rendered

    def _tokenize(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            split_special_tokens=False,
            verbose=False,
        )
        rows: list[list[int]] = encoded["input_ids"]
        if parse_special or not self.control.are_made_of_other_text:
            return rows
        pairs = zip(rows, texts, strict=True)
        return [ids if self.control.are_own(ids, text) else self.control.encode(text) for ids, text in pairs]

    @cached_property
    def unnamed_end(self) -> int | None:
        """The token that the template closes a turn with, where it is none of the model's eos tokens."""
        closing = self.closing_token_id
        return None if self._eos_token_ids is None or closing in self._eos_token_ids else closing

    def offsets(self, prompt: str, ids: Sequence[int], conversation: Conversation) -> list[tuple[int, int]]:
        """Which characters of a rendered prompt each of its tokens stands for; of none where that cannot be known."""
        plain = self.tokenizer(
            prompt, add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        if plain["input_ids"] == list(ids):
            return list(plain["offset_mapping"])
        rendered = self._render_hidden(self.with_system(conversation))
        if self.control.encode(rendered) == list(ids):
            return self.control.offsets(rendered)
        return [(0, 0)] * len(ids)

    @cached_property
    def closing_token_id(self) -> int | None:
        """The token that the template closes the assistant's turn with; None where it is plain text."""
        closing = self.turns.closing.lstrip() if self.turns else ""
        added = {token.content: index for index, token in self.tokenizer.added_tokens_decoder.items()}
        matching = [token for token in added if token and not token.isspace() and closing.startswith(token)]
        return added[max(matching, key=len)] if matching else None


def make_chat(
    tokenizer: PreTrainedTokenizerBase,
    options: ChatOptions = NOTHING_SAID,
    chosen: Mapping[str, str] | None = None,
    *,
    say: Say = lambda line: None,
    eos_token_ids: frozenset[int] | None = None,
) -> Chat:
    """The chat template that a run asks for (or has `chosen`), else the model's own, with the run's arguments.

    What a person should know of it is told through `say`, once. An answer ends at the model's `eos_token_ids`, and at
    the token that the template closes a turn with, which some models do not name.
    Raises `UsageError` where prompts are to go through a template and there is none.
    """
    sources = chosen or templates_of(tokenizer)
    if options.template is not None and not chosen:
        sources = choose_template(options.template, sources)
    if not sources and options.wraps_prompts:
        flag = "--chat" if options.system is None else "--system"
        raise UsageError(f"{flag} needs a chat template, {NO_TEMPLATE}")
    variables = {**tokenizer.special_tokens_map, **options.arguments}
    return Chat(ChatTemplate(sources, variables=variables) if sources else None, tokenizer, options, say, eos_token_ids)


def open_chat(
    checkpoint: Checkpoint,
    options: ChatOptions = NOTHING_SAID,
    chosen: Mapping[str, str] | None = None,
    *,
    say: Say = lambda line: None,
) -> Chat:
    """`make_chat` for a model, with its tokenizer and its eos tokens."""
    return make_chat(checkpoint.tokenizer, options, chosen, say=say, eos_token_ids=checkpoint.eos_token_ids)


def templates_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """A tokenizer's chat templates by name; the only one of most is `default`."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, Mapping):
        return dict(own)
    return {"default": own} if own else {}


def _bounded(prompt: str) -> Rendered:
    if len(prompt) > LONGEST_PROMPT:
        return Rendered(error=f"the rendered prompt has {len(prompt):,} characters, more than {LONGEST_PROMPT:,}")
    return Rendered(prompt)
