"""Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding): guess a row's next tokens from its own tokens.

If the row's last tokens occurred before, the tokens that followed them may follow again. Knows nothing of models: the
caller finds out which guesses were right and reports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GRAMS = (4, 3, 2)  # lengths of the n-grams to look for at the end of the row, the most specific first
FIRST_GUESS = 3  # tokens; a step of one row can take this many at no cost
LONGEST_PAUSE = 31  # steps without a guess, after many wrong ones


@dataclass(slots=True)
class Drafts:
    """The n-grams of one row that its guesses come from, and how well the guesses did.

    A fully correct guess doubles the length of the next one. A guess whose first token was wrong is followed by a
    pause, twice as long as the last one.
    """

    _next: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> index of the token that followed it
    _num_read: int = 0
    _longest: int = FIRST_GUESS
    _pause: int = 0
    _steps_to_wait: int = 0

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """Return at most `most` tokens that may follow `tokens`, the row's tokens, which only grow between calls."""
        self._read(tokens)
        if self._steps_to_wait:
            self._steps_to_wait -= 1
            return []
        places = (self._next.get(tuple(tokens[-size:])) for size in GRAMS)
        place = next((place for place in places if place is not None), None)
        if place is None:
            return []
        end = len(tokens)
        found = tokens[place : place + min(most, self._longest)]
        while len(found) < min(most, self._longest):  # the guess reached the row's end: text that repeats itself
            found.append(found[len(found) - (end - place)])
        return found

    def note(self, num_guessed: int, num_right: int) -> None:
        """Record how many tokens of the last guess were right."""
        if num_right == num_guessed:
            self._longest = max(self._longest, 2 * num_guessed)
            self._pause = 0
        elif num_right:
            self._longest = max(FIRST_GUESS, num_right)
            self._pause = 0
        else:
            self._longest = FIRST_GUESS
            self._pause = self._steps_to_wait = min(2 * self._pause + 1, LONGEST_PAUSE)

    def _read(self, tokens: list[int]) -> None:
        for place in range(self._num_read, len(tokens)):
            for size in GRAMS:
                if place >= size:
                    self._next[tuple(tokens[place - size : place])] = place
        self._num_read = len(tokens)
