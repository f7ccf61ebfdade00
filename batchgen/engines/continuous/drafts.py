"""Prompt lookup: a row's next tokens guessed from those that it has (https://github.com/apoorvumang/prompt-lookup-decoding).

Where its last tokens stood before, what followed them then may follow them now. Knows nothing of models: whoever asks
finds out which guesses were right, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GRAMS = (4, 3, 2)  # how many last tokens are looked for, the most telling first
FIRST_GUESS = 3  # tokens; a step of one row has room for as many at no cost
LONGEST_PAUSE = 31  # steps without a guess, once many were wrong


@dataclass(slots=True)
class Drafts:
    """What one row's guesses are made of, and how well they did.

    A guess that was right all through doubles the next one. One that was wrong at once is followed by a pause, twice as
    long as the last one.
    """

    _next: dict[tuple[int, ...], int] = field(default_factory=dict)  # where what followed n tokens last time stands
    _num_read: int = 0
    _longest: int = FIRST_GUESS
    _pause: int = 0
    _steps_to_wait: int = 0

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """At most so many tokens that may follow those of the row, to which some were added since the last time."""
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
        while len(found) < min(most, self._longest):  # it has come to its own beginning: text that repeats itself
            found.append(found[len(found) - (end - place)])
        return found

    def note(self, num_guessed: int, num_right: int) -> None:
        """How many tokens of the last guess were right."""
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
