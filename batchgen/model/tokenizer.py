"""The tokenizer interface that batchgen uses, and an implementation with the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import tokenizers


class Tokenizer(Protocol):
    """The tokenizer interface that batchgen uses: a subset of transformers' own."""

    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]: ...
    @property
    def special_tokens_map(self) -> dict[str, str]: ...
    @property
    def all_special_tokens(self) -> list[str]: ...
    @property
    def all_special_ids(self) -> list[int]: ...
    @property
    def chat_template(self) -> Any: ...

    def __hash__(self) -> int: ...
    def __call__(self, text: Any, **options: Any) -> Mapping[str, Any]: ...

    def decode(
        self, token_ids: list[int], skip_special_tokens: bool = ..., clean_up_tokenization_spaces: bool = ...
    ) -> str: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...
    def get_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True, eq=False)
class LightTokenizer:
    """Behaves like transformers' tokenizer for the same folder, as far as the `Tokenizer` interface goes.

    Does not pad, truncate or clean up. Must not be used by two threads at once.
    """

    backend_tokenizer: tokenizers.Tokenizer
    special_tokens_map: dict[str, str]  # by their names, such as eos_token
    more_special_tokens: tuple[str, ...] = ()
    chat_template: str | None = None

    @property
    def eos_token_id(self) -> int | None:
        eos = self.special_tokens_map.get("eos_token")
        return None if eos is None else self.convert_tokens_to_ids(eos)

    @cached_property
    def vocab_size(self) -> int:
        """The size of the vocabulary, without added tokens."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    @cached_property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        return self.backend_tokenizer.get_added_tokens_decoder()

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.more_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def __call__(
        self,
        text: str | list[str],
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        return_offsets_mapping: bool = False,
        **plain: Any,
    ) -> dict[str, Any]:
        """`input_ids` of a text or of each in a list, optionally with `offset_mapping`.

        With `split_special_tokens`, special tokens written in a text stay plain text.
        """
        self.backend_tokenizer.encode_special_tokens = split_special_tokens
        texts = [text] if isinstance(text, str) else text
        encodings = self.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        encoded: dict[str, list[Any]] = {"input_ids": [encoding.ids for encoding in encodings]}
        if return_offsets_mapping:
            encoded["offset_mapping"] = [encoding.offsets for encoding in encodings]
        return {name: rows[0] for name, rows in encoded.items()} if isinstance(text, str) else dict(encoded)

    def decode(
        self, token_ids: list[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """The text of tokens, with spaces exactly as they are."""
        assert not clean_up_tokenization_spaces, "clean-up of spaces changes the text"
        return self.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The tokens as the vocabulary spells them; "" for an unknown id."""
        return [self.backend_tokenizer.id_to_token(i) or "" for i in ids]

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of a token. Raises `KeyError` if it is not in the vocabulary."""
        index = self.backend_tokenizer.token_to_id(token)
        if index is None:
            raise KeyError(token)
        return index

    def get_vocab(self) -> dict[str, int]:
        """Ids by token, including added tokens."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)
