"""Guesses from a row's own tokens: what is guessed, how far, and when there is no guess."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from batchgen.engines.continuous.drafts import FIRST_GUESS, GRAMS, LONGEST_PAUSE, Drafts


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    assert Drafts().guess([1, 2, 3, 4, 5, 9, 2, 3], 2) == [4, 5]


def test_the_longest_match_counts_and_of_equal_ones_the_last() -> None:
    assert Drafts().guess([1, 2, 3, 7, 2, 3, 8, 1, 2, 3], 1) == [7]
    assert Drafts().guess([2, 3, 7, 5, 2, 3, 8, 5, 2, 3], 1) == [8]


def test_nothing_is_guessed_of_tokens_that_were_not_there_before() -> None:
    assert Drafts().guess([1, 2, 3, 4], 3) == []
    assert Drafts().guess([1], 3) == []


def test_text_that_repeats_itself_is_guessed_beyond_its_end() -> None:
    drafts = Drafts()
    assert drafts.guess([7, 8, 9] * 3, 3) == [7, 8, 9]
    drafts.note(3, 3)
    assert drafts.guess([7, 8, 9] * 4, 5) == [7, 8, 9, 7, 8]


def test_right_guesses_grow_and_partly_right_ones_shrink() -> None:
    drafts, tokens = Drafts(), [1, 2] * 10
    lengths = []
    for _ in range(4):
        lengths.append(len(drafts.guess(tokens, 20)))
        drafts.note(lengths[-1], lengths[-1])
    assert lengths == [FIRST_GUESS * 2**n for n in range(3)] + [20]
    drafts.note(20, 4)
    assert len(drafts.guess(tokens, 20)) == 4


def test_pauses_after_wrong_guesses_double_until_one_is_right() -> None:
    drafts, tokens = Drafts(), [1, 2] * 10
    pauses = []
    for _ in range(7):
        pauses.append(0)
        while not drafts.guess(tokens, 3):
            pauses[-1] += 1
        drafts.note(3, 0)
    assert pauses == [0, 1, 3, 7, 15, LONGEST_PAUSE, LONGEST_PAUSE]
    while not drafts.guess(tokens, 3):
        pass
    drafts.note(3, 1)
    assert drafts.guess(tokens, 3)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20), st.integers(0, 2**32))
def test_a_guess_stands_in_the_row_behind_the_same_tokens(tokens: list[int], most: int, seed: int) -> None:
    drafts, source = Drafts(), random.Random(seed)
    for end in sorted(source.sample(range(len(tokens) + 1), min(3, len(tokens) + 1))):
        guessed = drafts.guess(tokens[:end], most)
        assert len(guessed) <= most
        if guessed:
            whole = tokens[:end] + guessed
            seen = [whole[i : i + GRAMS[-1] + 1] for i in range(end - GRAMS[-1])]
            assert whole[end - GRAMS[-1] : end + 1] in seen
            drafts.note(len(guessed), source.randint(0, len(guessed)))
