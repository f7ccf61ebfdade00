"""Formats text and numbers for display: escapes unsafe characters, shows spaces, rounds to two digits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# Must not reach a terminal or a page raw: C0 except newline and tab, DEL, C1, bidirectional controls, surrogates.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    r"""Escape unsafe characters.

    >>> escape("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def visible(piece: str) -> str:
    r"""Show a token on one line, with visible spaces and line breaks.

    >>> visible(" dog\n")
    '·dog⏎'
    """
    return escape(piece.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·"))


def cell_value(value: object) -> str | int | float | bool | None:
    """Return a value that a column on a page can be sorted by."""
    return value if value is None or isinstance(value, bool | int | float) else escape(str(value))


def whole_pieces(text: str, tokens: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    r"""Split a text into pieces; yield each with the index of its first token and one past its last.

    A piece is one token, or several tokens that share a character and decode to U+FFFD by themselves.

    >>> list(whole_pieces("a \u00e9b", ["a", " ", "\ufffd", "\ufffd", "b"]))
    [('a', 0, 1), (' ', 1, 2), ('é', 2, 4), ('b', 4, 5)]
    """
    place = start = 0  # `place` is in the text; `start` is the first token not in a piece yet
    for number, token in enumerate(tokens):
        if "\ufffd" in token:
            continue
        found = text.find(token, place) if start < number else place if text.startswith(token, place) else -1
        if start < number:
            yield (text[place:found] if found >= 0 else "".join(tokens[start:number])), start, number
        yield token, number, number + 1
        start = number + 1
        place = found + len(token) if found >= 0 else place
    if start < len(tokens):
        yield text[place:] or "".join(tokens[start:]), start, len(tokens)


def with_id(row_id: object) -> str:
    """Return ` with id …` for a sentence, or nothing for a row without an id.

    >>> f"the first{with_id(7)}: too long", f"the first{with_id(None)}: too long"
    ('the first with id 7: too long', 'the first: too long')
    """
    return "" if row_id is None else f" with id {row_id}"


def name_row(row_id: object) -> str:
    """Name a row in a sentence: `row 7`, or `a row` if it has no id."""
    return "a row" if row_id is None else f"row {row_id}"


def short_number(number: float) -> str:
    """Format a number with two significant digits and a short exponent.

    >>> short_number(1.1e-05), short_number(0.0), short_number(2.93)
    ('1.1e-5', '0', '2.9')
    """
    if number == 0:
        return "0"
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    if not exponent:  # inf, nan
        return mantissa
    return f"{number:.2g}" if -2 <= int(exponent) < 3 else f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def clock_text(seconds: float) -> str:
    """Format a time as hours, minutes and seconds.

    >>> clock_text(7.4), clock_text(11_107)
    ('0:00:07', '3:05:07')
    """
    minutes, left = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}"


def size_text(num_bytes: int) -> str:
    """Format a number of bytes in the largest fitting unit.

    >>> size_text(0), size_text(72 << 10), size_text(3 << 29)
    ('0 B', '72 KiB', '1.5 GiB')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(max(0, num_bytes.bit_length() - 1) // 10, len(units) - 1)
    return f"{num_bytes / 1024**power:.1f}".removesuffix(".0") + f" {units[power]}"


def duration_text(seconds: float) -> str:
    """Format a time as hours, minutes and seconds, or as days and hours from two days on.

    >>> duration_text(75.4), duration_text(12307), duration_text(200_000)
    ('0:01:15', '3:25:07', '2 d 7 h')
    """
    days, rest = divmod(int(seconds) // 3600, 24)
    return f"{days} d {rest} h" if days >= 2 else clock_text(seconds)
