"""What the parts of a tokenizer.json can do to a text, judged from the file: how far it grows and how long that takes.

Knows the kinds of parts that the tokenizers library has, and the patterns of well-known models; runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MOST_STEPS, DEEPEST = 64, 8  # no known tokenizer has a tenth of it
MOST_GROWTH = 32  # characters that one character may become
LONGEST_TEXT = 16_384  # of a token, a replacement or a pattern, in characters
LONGEST_WORD = 100  # characters; WordPiece may look at all parts of a word again for each character
LONGEST_PIECE = 128  # characters; Unigram looks this far ahead from each character
MOST_ADDED = 64  # tokens added around a text
INNER = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
PLAIN = {
    "normalizer": {"BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Prepend",
                   "Replace", "Strip", "StripAccents"},
    "pre_tokenizer": {"BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation",
                      "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"},
    "decoder": {"BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"},
}  # fmt: skip
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
ENDINGS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Patterns of GPT-2, GPT-4 and Llama 3, Qwen 2, GPT-4o, DeepSeek: none of them backtracks.
KNOWN_PATTERNS = {
    rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{ENDINGS}",
    rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{ENDINGS}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:{CONTRACTIONS})?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:{CONTRACTIONS})?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{ENDINGS}",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*{ENDINGS}",
}  # fmt: skip
ATOM = r"(?:\\[pP]\{\^?\w+\}|\\[^\dkgpP]|\[\^?(?:[^\[\]\\&]|\\[^\d])+\]|[^\\\[\](){}*+?|^$])"
# One repeated atom, or a sequence of atoms without repetition: there is nothing to backtrack into.
ONE_WAY = re.compile(rf"{ATOM}(?:[+*?]|\{{\d{{1,2}}(?:,(?:\d{{1,2}})?)?\}})?|{ATOM}+")


def find_harm(parts: Mapping[str, Any]) -> str | None:
    """Why a tokenizer with these parts (of tokenizer.json) must not be used, in a few words; None if it may be."""
    for part in INNER:
        steps = list(_steps(parts.get(part), part))
        if len(steps) > MOST_STEPS:
            return f"its {part} has more than {MOST_STEPS} steps"
        if (growth := growth_of(steps)) > MOST_GROWTH:
            return f"its {part} can make {_rounded(growth)} characters of one"
    if any(not _is_tame(pattern) for pattern in _patterns(parts.get("decoder"), "decoder")):
        return "its decoder has a pattern that can backtrack without end"
    if _longest_text(parts) > LONGEST_TEXT:
        return f"it has a text of more than {LONGEST_TEXT:,} characters in its vocabulary or among its steps"
    if _most_around(parts.get("post_processor")) > MOST_ADDED:
        return f"it puts more than {MOST_ADDED} tokens around a text"
    return None


def is_plain(parts: Mapping[str, Any]) -> bool:
    """Whether every part is of a kind that takes time and memory in proportion to any text."""
    for part, kinds in PLAIN.items():
        if any(step.get("type") not in kinds for step in _steps(parts.get(part), part)):
            return False
        if not all(_is_tame(pattern) for pattern in _patterns(parts.get(part), part)):
            return False
        if part == "decoder" and any(step.get("stop") for step in _steps(parts.get(part), part)):
            return False  # the library panics if a token is shorter than what is to be stripped from its end
    model = parts.get("model")
    if not isinstance(model, Mapping):
        return False
    longest_word, vocab = model.get("max_input_chars_per_word", 0), model.get("vocab")
    if isinstance(vocab, list) and max(map(len, _tokens(model)), default=0) > LONGEST_PIECE:
        return False
    return isinstance(longest_word, int) and longest_word <= LONGEST_WORD


def growth_of(steps: list[Mapping[str, Any]]) -> float:
    """The most characters that the steps of a normalizer or decoder can make of one character.

    Works from the last step to the first and tracks what the later steps make of each character.

    >>> growth_of([{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 3)
    8.0
    """
    others, by_character = 1.0, dict[str, float]()
    for step in reversed(steps):
        if step.get("type") != "Replace":
            continue
        pattern, content = step.get("pattern"), str(step.get("content", ""))
        made = sum(by_character.get(sign, others) for sign in content)
        literal = pattern.get("String") if isinstance(pattern, Mapping) else None
        if isinstance(literal, str) and literal:
            for sign in set(literal):
                by_character[sign] = max(by_character.get(sign, others), made / len(literal))
        else:  # any character may match, or the gap after it
            between = made if literal == "" or _matches_nothing(pattern) else 0.0
            by_character = {sign: max(each + between, made) for sign, each in by_character.items()}
            others = max(others + between, made)
    return max([others, *by_character.values()])


def _steps(part: Any, kind: str, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, with nested sequences flattened; more than `MOST_STEPS` if they are nested too deeply."""
    if depth > DEEPEST:
        yield from ({} for _ in range(MOST_STEPS + 1))
    elif isinstance(part, Mapping) and part.get("type") == "Sequence":
        inner = part.get(INNER[kind])
        for step in inner if isinstance(inner, list) else []:
            yield from _steps(step, kind, depth + 1)
    elif isinstance(part, Mapping):
        yield part


def _patterns(part: Any, kind: str) -> Iterator[str]:
    """The regular expressions in a part."""
    for step in _steps(part, kind):
        pattern = step.get("pattern")
        if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
            yield pattern["Regex"]


def _is_tame(pattern: str) -> bool:
    return pattern in KNOWN_PATTERNS or (len(pattern) <= 256 and ONE_WAY.fullmatch(pattern) is not None)


def _matches_nothing(pattern: Any) -> bool:
    """Whether a regular expression may match the empty string between two characters."""
    text = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    if not isinstance(text, str) or any(sign in text for sign in ("(?", "^", "$", "\\b", "\\B", "\\G", "\\A", "\\z")):
        return not (isinstance(text, str) and _is_tame(text) and not text.endswith(("*", "?")))
    try:
        return re.compile(re.sub(r"\\[pP]\{\^?\w+\}", "x", text)).fullmatch("") is not None
    except (re.error, RecursionError, OverflowError):
        return True


def _longest_text(parts: Mapping[str, Any]) -> int:
    """The length of the longest token, replacement or pattern, in characters."""
    model, added = parts.get("model"), parts.get("added_tokens")
    lengths = [max(map(len, _tokens(model)), default=0)]
    lengths += [len(str(token.get("content"))) for token in added or [] if isinstance(token, Mapping)]
    for part in INNER:
        for step in _steps(parts.get(part), part):
            lengths += [len(str(value)) for name, value in step.items() if name != "precompiled_charsmap"]
    return max(lengths)


def _tokens(model: Any) -> list[str]:
    """The tokens in a model's vocabulary, which is a list or a mapping depending on the kind of model."""
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocab, list):  # of [piece, score]
        return [str(entry[0]) for entry in vocab if isinstance(entry, list) and entry]
    return [*map(str, vocab)] if isinstance(vocab, Mapping) else []


def _most_around(processor: Any) -> int:
    """An upper bound on the number of tokens that a post-processor adds around a text."""
    if not isinstance(processor, Mapping):
        return 0
    if isinstance(inner := processor.get("processors"), list):
        return sum(map(_most_around, inner))
    special = processor.get("special_tokens")
    ids = [len(token.get("ids", ())) for token in special.values()] if isinstance(special, Mapping) else []
    return max(len(processor.get("single", ())), *ids, len(processor.get("single", ())) * max(ids, default=1), 0)


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number < 1e6 else f"about 10^{len(f'{number:.0f}') - 1}"
