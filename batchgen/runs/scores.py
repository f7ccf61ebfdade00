"""Scores from Python: how likely given texts are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Unpack

from batchgen.errors import UsageError
from batchgen.model import Model
from batchgen.records import Logprobs, Result, RowId, SamplingParams, ScoredText, ScoringOptions
from batchgen.runs.calls import Prompt, Warnings, job_of
from batchgen.runs.execute import open_run
from batchgen.runs.keywords import ScoreOptions, python_words, read_keywords


@dataclass(frozen=True, slots=True)
class Score:
    """The log-likelihood (natural logarithm) of a row's text or of each of its choices.

    `logprob` is the sum over `num_tokens`; `is_greedy` is true if each token is the most likely one at its position.
    With choices, `best`, `best_per_token` and `best_per_byte` are indices into `choices`, and `is_tie` is true if
    rounding alone could change one of them. Fields that do not apply are None. If the row failed, all of them are None,
    and `error` is the reason.
    """

    index: int
    id: RowId | None
    prompt: str
    text: str
    logprob: float | None = None
    num_tokens: int | None = None
    is_greedy: bool | None = None
    perplexity: float | None = None
    logprobs: Logprobs | None = None
    choices: tuple[ScoredText, ...] | None = None
    best: int | None = None
    best_per_token: int | None = None
    best_per_byte: int | None = None
    is_tie: bool | None = None
    error: str | None = None
    metadata: dict[str, Any] | None = None
    model: str = ""

    @property
    def continuation(self) -> str:
        """The scored text, under the name it has in records with a prompt."""
        return self.text

    @classmethod
    def of(cls, result: Result) -> Score:
        """Make the score of a finished row."""
        score = result.score
        found: dict[str, Any] = {}
        if score and score.texts and score.kind == "choices":
            names = ("best", "best_per_token", "best_per_byte", "is_tie")
            found = {"choices": score.texts} | {name: getattr(score, name) for name in names}
        elif score and score.texts:
            numbers = ("logprob", "num_tokens", "is_greedy", "logprobs", "perplexity")
            found = {name: getattr(score.texts[0], name) for name in numbers}
        own = {name: getattr(result, name) for name in ("index", "id", "prompt", "text", "error", "metadata", "model")}
        return cls(**own, **found)


@python_words()
def score(
    rows: Prompt | Iterable[Prompt], model: str | Model | None = None, **options: Unpack[ScoreOptions]
) -> list[Score]:
    """Score how likely texts are, like `batchgen score`; return one Score per row, in order.

    `rows` are texts, or mappings with the fields of a JSON Lines row: `prompt` and `continuation`, `prompt` and
    `choices`, `text`, or `messages`, whose last reply is scored. `tokens` adds each token's log-probability;
    `logprobs`, a number, also adds that many of the most likely alternatives. Raises `BatchgenError`. A bad row does
    not raise: its Score has an `error`.

    >>> [row] = score([{"prompt": "My dog is", "choices": [" a very nice dog", " Tuesday"]}], model="bundled")
    >>> row.best, row.choices[0].num_tokens, row.is_tie
    (0, 4, False)
    """
    keywords = read_keywords("score", options, ScoreOptions)
    number = keywords.given.get("logprobs")
    if number is None and keywords.given.get("tokens"):
        number = 0
    stride = keywords.given.get("stride")
    if stride is not None and (not isinstance(stride, int) or stride < 1):
        raise UsageError(f"stride {stride} must be a number of tokens of at least 1")
    sampling = SamplingParams(max_new_tokens=1, logprobs=number)
    job = job_of(rows, model, keywords, sampling=sampling, scoring=ScoringOptions(stride))
    with open_run(job, Warnings()) as run:
        found = sorted(run.results(), key=lambda result: result.index)
    return [Score.of(result) for result in found]
