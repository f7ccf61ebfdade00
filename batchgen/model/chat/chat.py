"""A chat template and its tokenizer: turns conversations into text and token ids, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from hashlib import sha256
from typing import TYPE_CHECKING

from batchgen.errors import UsageError
from batchgen.formats.fields import SURROGATES
from batchgen.formats.messages import conversation_of_prompt
from batchgen.model.chat.control import ControlTokens
from batchgen.model.chat.template import START, ChatTemplate, choose_template
from batchgen.model.chat.template_files import read_templates
from batchgen.model.chat.turns import Turns, find_marks, find_turns
from batchgen.model.find import Say
from batchgen.model.guarded import each_or_why
from batchgen.records import LONGEST_PROMPT, ChatOptions, Conversation, Message, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from batchgen.model.checkpoint import Checkpoint

NO_TEMPLATE = "the model has none"
NOTHING_SAID = ChatOptions()


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text and token ids, or why it could not be rendered."""

    prompt: str = ""
    input_ids: tuple[int, ...] = ()
    error: str | None = None


class Chat:
    """Makes prompts from conversations: a chat template, if the model has one, and its tokenizer."""

    def __init__(
        self,
        templates: Mapping[str, str],
        make_tokenizer: Callable[[], PreTrainedTokenizerBase],
        options: ChatOptions = NOTHING_SAID,
        *,
        say: Say = lambda line: None,
        eos_token_ids: frozenset[int] | None = None,
        now: datetime = START,
        missing: str = NO_TEMPLATE,
    ) -> None:
        """`templates` are sources by name, or none because of `missing`. The tokenizer is created when first used."""
        self.missing = missing
        self._eos_token_ids = eos_token_ids
        self._now = now
        self._templates = templates
        self._make_tokenizer = make_tokenizer
        self._say = say
        self._said: set[str] = set()
        self.options = options

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._make_tokenizer()

    @property
    def chosen_templates(self) -> Mapping[str, str] | None:
        """The templates chosen for the run; None for the model's own."""
        return self._templates if self.options.template is not None else None

    @property
    def digest(self) -> str | None:
        """A hash of the templates chosen for the run, to detect a change; None for the model's own."""
        templates = self.chosen_templates
        return sha256("\0".join(templates.values()).encode()).hexdigest() if templates else None

    @property
    def has_template(self) -> bool:
        return bool(self._templates)

    @cached_property
    def template(self) -> ChatTemplate:
        """The compiled template. Raises `ValueError` if there is none, or it is invalid."""
        if not self._templates:
            raise ValueError(f"messages need a chat template, and {self.missing}: add --chat-template FILE")
        variables = {**self.tokenizer.special_tokens_map, **self.options.arguments}
        try:
            return ChatTemplate(self._templates, variables=variables, now=self._now)
        except UsageError as error:
            raise ValueError(str(error)) from None

    def conversation_of(self, request: Request) -> Conversation | None:
        """A row's messages, or with `--chat` its prompt as a user message; None for a plain prompt.

        Raises `ValueError` for a column next to the prompt that no template accepts.
        """
        if request.conversation is None and self.options.wraps_prompts:
            return conversation_of_prompt(request.prompt, request.beside)
        return request.conversation

    def with_system(self, conversation: Conversation) -> Conversation:
        """The conversation with the run's system message, if it has none of its own."""
        if self.options.system is None or conversation.messages[0].role in ("system", "developer"):
            return conversation
        return replace(conversation, messages=(Message("system", self.options.system), *conversation.messages))

    def say_once(self, line: str) -> None:
        """Report something that users should know, once per run."""
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    @cached_property
    def turns(self) -> Turns | None:
        try:
            return find_turns(self.template)
        except ValueError:
            return None

    @cached_property
    def reasoning_marks(self) -> tuple[str, str] | None:
        """The marks that open and close a thought; None if neither the template nor the tokenizer has any."""
        source = "\0".join(self._templates.values())
        return find_marks(source, {token.content for token in self.tokenizer.added_tokens_decoder.values()})

    @cached_property
    def control(self) -> ControlTokens:
        """Special tokens, and added tokens that open or close turns without being declared special."""
        glue = self.turns.glue if self.turns else ""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        marks = self.reasoning_marks or ()
        return ControlTokens(self.tokenizer, frozenset(token for token in added - {*marks} if token in glue))

    def encode(self, conversations: list[Conversation], *, parse_special: bool = False) -> list[Rendered]:
        """Text and token ids of each conversation, in order, each with the run's system message.

        Text that looks like a special token stays text unless `parse_special` is set.
        """
        rows = [self._render(self.with_system(conversation), parse_special) for conversation in conversations]
        texts = [row.prompt for row in rows if not row.error and not row.input_ids]
        found = iter(each_or_why(texts, partial(self._tokenize, parse_special=parse_special)))
        return [row if row.error or row.input_ids else _encoded(row, next(found)) for row in rows]

    def _render(self, conversation: Conversation, parse_special: bool) -> Rendered:
        """The text, and also the token ids if the tokenizer alone would not give the right ones."""
        try:
            if parse_special or not self.control.is_in(conversation):
                return _bounded(self.template.render(conversation))
            rendered = self._render_hidden(conversation)
            bounded = _bounded(self.control.show(rendered))
            return bounded if bounded.error else Rendered(bounded.prompt, tuple(self.control.encode(rendered)))
        except ValueError as problem:
            return Rendered(error=str(problem))

    def _render_hidden(self, conversation: Conversation) -> str:
        """Render with the text of special tokens hidden.

        Reasoning marks in the assistant's own messages stay visible to a template that removes the reasoning.
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
        """The token that the template closes a turn with, if it is not one of the model's eos tokens."""
        closing = self.closing_token_id
        return None if self._eos_token_ids is None or closing in self._eos_token_ids else closing

    def offsets(self, prompt: str, ids: Sequence[int], conversation: Conversation) -> list[tuple[int, int]]:
        """The (start, end) characters of a rendered prompt for each token; (0, 0) for all if they are unknown."""
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
        """The token that the template closes the assistant's turn with; None if it is plain text."""
        closing = self.turns.closing.lstrip() if self.turns else ""
        added = {token.content: index for index, token in self.tokenizer.added_tokens_decoder.items()}
        matching = [token for token in added if token and not token.isspace() and closing.startswith(token)]
        return added[max(matching, key=len)] if matching else None


def make_chat(
    own: Mapping[str, str],
    make_tokenizer: Callable[[], PreTrainedTokenizerBase],
    options: ChatOptions = NOTHING_SAID,
    chosen: Mapping[str, str] | None = None,
    *,
    say: Say = lambda line: None,
    eos_token_ids: frozenset[int] | None = None,
    now: datetime = START,
    missing: str = NO_TEMPLATE,
) -> Chat:
    """Make a chat with the template that a run asks for (or has `chosen`), otherwise the model's `own`.

    If there are none, `missing` says why.

    Reports what users should know through `say`, once. An answer ends at the model's `eos_token_ids`, and at the token
    that the template closes a turn with, which some models do not list as eos. `now` is the time that templates show;
    it stays the same if a run is resumed on another day.
    Raises `UsageError` if prompts need a template and there is none, or the template is invalid.
    """
    templates = chosen or own
    if options.template is not None and not chosen:
        templates = choose_template(options.template, own)
    if not templates and options.wraps_prompts:
        flag = "--chat" if options.system is None else "--system"
        raise UsageError(f"{flag} needs a chat template, and {missing}: add --chat-template FILE")
    if options.template is not None or options.wraps_prompts:
        ChatTemplate(templates)
    return Chat(templates, make_tokenizer, options, say=say, eos_token_ids=eos_token_ids, now=now, missing=missing)


def open_chat(
    checkpoint: Checkpoint,
    options: ChatOptions = NOTHING_SAID,
    chosen: Mapping[str, str] | None = None,
    *,
    say: Say = lambda line: None,
    now: datetime = START,
) -> Chat:
    """Call `make_chat` for a model, with the templates in its folder, its tokenizer and its eos tokens."""
    try:
        own, missing = read_templates(checkpoint.folder), NO_TEMPLATE
    except ValueError as problem:
        own, missing = {}, str(problem)
    codec, ends = checkpoint.codec, checkpoint.eos_token_ids
    return make_chat(own, lambda: codec, options, chosen, say=say, eos_token_ids=ends, now=now, missing=missing)


def _encoded(row: Rendered, found: list[int] | str) -> Rendered:
    """A rendered conversation with its token ids, or with the reason why the tokenizer fails on it."""
    return Rendered(error=found) if isinstance(found, str) else Rendered(row.prompt, tuple(found))


def _bounded(prompt: str) -> Rendered:
    if half := SURROGATES.search(prompt):
        problem = "the chat template writes a lone surrogate (half a character)"
        return Rendered(error=f"{problem} at character {half.start()} of the prompt")
    if len(prompt) > LONGEST_PROMPT:
        return Rendered(error=f"the rendered prompt has {len(prompt):,} characters, more than {LONGEST_PROMPT:,}")
    return Rendered(prompt)
