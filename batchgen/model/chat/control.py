"""Keep text in a conversation that looks like a special token apart from the template's own special tokens.

Before such a conversation is rendered, the characters of that text are replaced one for one by private-use characters,
so that a template can trim, count, compare, split or cut contents as usual. Any special token that the rendered text
then still spells out is the template's own. A copy of the tokenizer with renamed special tokens encodes the text as a
whole: the template's own tokens are written under the new names, and everything else is plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from batchgen.model.guarded import Guard, GuardedTokenizer
from batchgen.records import Conversation, Message

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

FIRST_STAND_IN = 0x100000  # the last plane of Unicode, which is for private use
ONLY_TRUSTED = "remove it, or use --parse-special if all input is trusted"


class ControlTokens:
    """The special tokens of a tokenizer, and `others` that a template uses, as text to look for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, others: frozenset[str] = frozenset()) -> None:
        added = tokenizer.added_tokens_decoder.items()
        self.ids = {
            token.content: index
            for index, token in added
            if (token.special or token.content in others) and token.content and not token.content.isspace()
        }
        self._tokenizer = tokenizer
        self._unknown: int | None = None
        self._tokens = re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) or "(?!)")
        self._longest = max(map(len, self.ids), default=0)
        self._beginnings = {token[:end] for token in self.ids for end in range(1, len(token))}
        self._first = {token[0] for token in self.ids}
        alphabet = sorted({character for token in self.ids for character in token})
        stand_ins = {character: chr(FIRST_STAND_IN + place) for place, character in enumerate(alphabet)}
        self._hide = str.maketrans(stand_ins)
        self._show = {stand_in: character for character, stand_in in stand_ins.items()}
        # `tojson` may have written the stand-ins as escapes.
        self._show |= {json.dumps(stand_in)[1:-1]: character for character, stand_in in stand_ins.items()}
        self._hidden = re.compile("|".join(map(re.escape, self._show)) or "(?!)")
        self._either = re.compile(f"({self._tokens.pattern})|{self._hidden.pattern}")

    def is_in(self, conversation: Conversation) -> bool:
        """Whether any text in it contains a special token, or ends with the beginning of one."""
        return any(self._tokens.search(text) or self._tail(text) for text in _texts(conversation))

    def hide(self, conversation: Conversation, keep: tuple[str, ...] = ()) -> Conversation:
        """The conversation with such text in private-use characters; in assistant messages, the marks `keep` stay.

        Raises `ValueError` for a conversation that already contains such characters.
        """
        for text in _texts(conversation):
            if self._hidden.search(text):
                raise ValueError(f"the text of a special token next to private-use Unicode characters: {ONLY_TRUSTED}")
        return replace(
            conversation,
            messages=tuple(self._hide_message(message, keep) for message in conversation.messages),
            tools=self._hide_in(conversation.tools),
            documents=self._hide_in(conversation.documents),
            arguments=self._hide_in(conversation.arguments),
        )

    def show(self, rendered: str) -> str:
        """The rendered text with the original characters restored."""
        return self._hidden.sub(lambda match: self._show[match[0]], rendered)

    def own(self, rendered: str) -> list[str]:
        """The template's own special tokens, in order."""
        return self._tokens.findall(rendered)

    def encode(self, rendered: str) -> list[int]:
        """Token ids of a rendered hidden conversation: the template's special tokens, and everything else as text.

        Raises `ValueError` if the tokenizer still makes a special token from the text.
        """
        ids: list[int] = self._encode(rendered).ids
        if not self.are_own(ids, rendered):
            raise ValueError(f"the tokenizer turns the text into a special token: {ONLY_TRUSTED}")
        return ids

    def offsets(self, rendered: str) -> list[tuple[int, int]]:
        """The (start, end) characters of the shown text for each token."""
        return list(self._encode(rendered).offsets)

    def _encode(self, rendered: str) -> Encoding:
        backend, guard = self._renamed_and_guarded
        named = self._either.sub(
            lambda match: match[1].translate(self._hide) if match[1] else self._show[match[0]], rendered
        )
        if guard is not None:
            guard.check([named])
        return backend.encode(named, add_special_tokens=False)

    @cached_property
    def _renamed_and_guarded(self) -> tuple[Tokenizer, Guard | None]:
        renamed = self._rename()
        is_guarded = isinstance(self._tokenizer, GuardedTokenizer)
        return renamed, self._tokenizer.guard_of(renamed) if is_guarded else None

    def are_own(self, ids: list[int], rendered: str) -> bool:
        """Whether the special tokens among `ids` are exactly those that the template wrote."""
        return self._known(ids) == self._known([self.ids[token] for token in self.own(rendered)])

    @cached_property
    def are_made_of_other_text(self) -> bool:
        """Whether the tokenizer may turn other text, such as full-width characters, into a special token."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or backend.normalizer is None:
            return False
        is_normalized = any(token.normalized for token in self._tokenizer.added_tokens_decoder.values())
        return is_normalized or type(backend.model).__name__ == "Unigram"

    def _known(self, ids: list[int]) -> list[int]:
        """The special tokens among `ids`, except the unknown token, which any text may become."""
        known = {*self.ids.values()} - {self._unknown}
        return [index for index in ids if index in known]

    def _tail(self, text: str) -> int:
        """The length of the special-token beginning that the text ends with, ignoring trailing spaces; 0 if none."""
        text = text.rstrip()
        start = max(0, len(text) - self._longest)
        for place, character in enumerate(text[start:], start):
            if character in self._first and text[place:] in self._beginnings:
                return len(text) - place
        return 0

    def _hide_text(self, text: str, keep: tuple[str, ...] = ()) -> str:
        hidden = self._tokens.sub(lambda match: match[0] if match[0] in keep else match[0].translate(self._hide), text)
        if size := self._tail(hidden):
            end = len(hidden.rstrip())
            hidden = hidden[: end - size] + hidden[end - size : end].translate(self._hide) + hidden[end:]
        return hidden

    def _hide_message(self, message: Message, keep: tuple[str, ...]) -> Message:
        kept = keep if message.role == "assistant" else ()
        return Message(message.role, self._hide_in(message.content, kept), self._hide_in(message.more))

    def _hide_in(self, value: Any, keep: tuple[str, ...] = ()) -> Any:
        if isinstance(value, str):
            return self._hide_text(value, keep)
        if isinstance(value, dict):
            return {self._hide_text(str(key)): self._hide_in(item, keep) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._hide_in(item, keep) for item in value]
        return value

    def _rename(self) -> Tokenizer:
        """A copy of the tokenizer with its special tokens renamed to stand-in characters.

        Raises `ValueError` if this kind of tokenizer cannot be renamed.
        """
        from tokenizers import Tokenizer

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"the text of a special token, which this kind of tokenizer cannot keep as text: {ONLY_TRUSTED}"
            )
        state = json.loads(backend.to_str())
        self._unknown = state["model"].get("unk_id", self.ids.get(state["model"].get("unk_token")))
        names = {token: token.translate(self._hide) for token in self.ids}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename_in_vocabulary(state, names, self.ids)
        state["post_processor"] = state["truncation"] = state["padding"] = None
        renamed = Tokenizer.from_str(json.dumps(state))
        if any(renamed.token_to_id(names[token]) != index for token, index in self.ids.items()):
            raise ValueError(f"the text of a special token, which this tokenizer cannot keep as text: {ONLY_TRUSTED}")
        return renamed


def _rename_in_vocabulary(state: dict[str, Any], names: dict[str, str], ids: dict[str, int]) -> None:
    """Rename tokens in the vocabulary too: added tokens keep their ids only if the vocabulary has them."""
    model = state["model"]
    vocabulary = model["vocab"]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if isinstance(vocabulary, list):  # of [piece, score], by id
        for token, index in ids.items():
            if index < len(vocabulary):
                vocabulary[index][0] = names[token]
        return
    merged = {"".join(merge) for merge in model.get("merges", []) if isinstance(merge, list)}
    for token in names.keys() - merged:
        vocabulary.pop(token, None)
    for token in state["added_tokens"]:
        vocabulary[token["content"]] = token["id"]


def _texts(value: object) -> Iterator[str]:
    """Every text of a conversation, except roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Conversation):
        for message in value.messages:
            yield from _texts(message.content)
            yield from _texts(message.more)
        for item in (value.tools, value.documents, value.arguments):
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
