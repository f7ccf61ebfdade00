"""How tokens are chosen: the single table of sampling options.

Each field is a flag of `run` and `plan`, a key of a row's `sampling`, and a parameter in Python and in OpenAI bodies.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from batchgen.records.constraint import ANY_OBJECT, WHITESPACE, Constraint, Grammar, JsonSchema
from batchgen.records.field_error import FieldError
from batchgen.records.logprobs import MOST_ALTERNATIVES
from batchgen.records.options import LogitBias, check_values, option, options_of

LENGTH, CHOOSING, CONSTRAINTS = "Length and stopping", "Choosing tokens", "Constrained output"
# The constraints on a row's text: each row has at most one.
CONSTRAINT_FIELDS = ("json_schema", "json_object", "regex", "choice", "grammar")
# Logits multiplied or divided by a factor within these bounds stay finite in float32.
LEAST_FACTOR, MOST_FACTOR = 1e-6, 1e6
MOST_SAMPLES = 16_384  # per row: all of them are created at once


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. `temperature` 0 is greedy; 0 turns off `top_k` (so does -1), `min_p` and n-gram bans.

    Raises `FieldError`, a `ValueError`, if a value is out of range or two options conflict.
    """

    max_new_tokens: int = option(50, "Maximum number of new tokens per row.", value="N", panel=LENGTH, least=1)
    min_new_tokens: int = option(0, "Minimum number of new tokens per row.", value="N", panel=LENGTH, least=0)
    temperature: float = option(
        0.0, "0 is greedy; higher values give more varied text.", value="T", panel=CHOOSING, least=0
    )
    top_k: int = option(
        0,
        "Sample from the K most likely tokens; 0 or -1 means all.",
        value="K",
        panel=CHOOSING,
        least=-1,
        only_sampled=True,
    )
    top_p: float = option(
        1.0,
        "Sample from the smallest set of tokens whose probabilities add up to P.",
        value="P",
        panel=CHOOSING,
        above=0,
        most=1,
        only_sampled=True,
    )
    min_p: float = option(
        0.0,
        "Sample from tokens that are at least P times as likely as the most likely one.",
        value="P",
        panel=CHOOSING,
        least=0,
        most=1,
        only_sampled=True,
    )
    repetition_penalty: float = option(
        1.0, "Values above 1 make tokens that are already in the prompt or text less likely.", value="R", panel=CHOOSING
    )
    presence_penalty: float = option(
        0.0,
        "Values above 0 make tokens that were already generated less likely (as in OpenAI's API).",
        value="P",
        panel=CHOOSING,
        least=-2,
        most=2,
    )
    frequency_penalty: float = option(
        0.0,
        "Like --presence-penalty, but for each time a token was generated.",
        value="F",
        panel=CHOOSING,
        least=-2,
        most=2,
    )
    logit_bias: LogitBias = option(
        (),
        'Add BIAS, from -100 to 100, to the logit of token ID. Can be repeated, or JSON: {"50256": -100}.',
        value="ID=BIAS",
        panel=CHOOSING,
    )
    no_repeat_ngram_size: int = option(0, "Never repeat a sequence of N tokens.", value="N", panel=CHOOSING, least=0)
    num_samples: int = option(
        1, "Answers per prompt.", value="N", panel=CHOOSING, least=1, most=MOST_SAMPLES, only_sampled=True
    )
    num_beams: int = option(1, "Beam search with N beams.", value="N", panel=CHOOSING, least=1, of_run=True)
    stop: tuple[str, ...] = option(
        (),
        "Stop a row at this text, which is not included. Can be repeated. \\n, \\t, \\r, \\\\, \\uXXXX are escapes.",
        value="TEXT",
        panel=LENGTH,
        escapes=True,
    )
    stop_token_ids: tuple[int, ...] = option(
        (),
        "Also stop a row at this token, which is not included in the text. Can be repeated.",
        value="ID",
        panel=LENGTH,
    )
    ignore_eos: bool = option(False, "Do not stop rows at the model's end token.", panel=LENGTH)
    logprobs: int | None = option(
        None,
        "Add the log-probability of each token and of the K most likely tokens at its position (0 to 20).",
        value="K|off",
        panel=CHOOSING,
        least=0,
        most=MOST_ALTERNATIVES,
        none="off",
    )
    json_schema: JsonSchema | None = option(
        None, "The text is JSON that matches this schema.", value="FILE|JSON", panel=CONSTRAINTS
    )
    json_object: bool = option(False, "The text is any JSON object.", panel=CONSTRAINTS)
    regex: str | None = option(
        None, "The whole text matches this regular expression.", value="REGEX", panel=CONSTRAINTS
    )
    choice: tuple[str, ...] = option(
        (), "The text is one of these choices. Can be repeated.", value="TEXT", panel=CONSTRAINTS
    )
    grammar: Grammar | None = option(None, "The text matches this Lark grammar.", value="FILE", panel=CONSTRAINTS)
    json_whitespace: str = option(
        "compact",
        "compact: JSON without spaces between its parts; any: the model chooses.",
        panel=CONSTRAINTS,
        choices=WHITESPACE,
    )
    seed: int = option(
        0, "Random seed. The same seed and row give the same tokens in any batch and order.", value="N", panel=CHOOSING
    )

    def __post_init__(self) -> None:
        given: object = self.choice
        if given == []:  # the default is a tuple
            raise FieldError("{choice} needs at least one text")
        check_values(self)
        if self.top_k == -1:  # off, as in vLLM
            object.__setattr__(self, "top_k", 0)
        self._check_factors()
        self._check_contradictions()
        self._check_constraint()

    def _check_factors(self) -> None:
        if self.temperature and not LEAST_FACTOR <= self.temperature <= MOST_FACTOR:
            raise FieldError(
                f"{{temperature}} {self.temperature} is not in [{LEAST_FACTOR:g}, {MOST_FACTOR:g}], nor 0 (greedy)"
            )
        if not LEAST_FACTOR <= self.repetition_penalty <= MOST_FACTOR:
            raise FieldError(
                f"{{repetition_penalty}} {self.repetition_penalty} is not a number above 0, "
                f"in [{LEAST_FACTOR:g}, {MOST_FACTOR:g}] (1 turns it off)"
            )

    def _check_contradictions(self) -> None:
        if self.min_new_tokens > self.max_new_tokens:
            raise FieldError(
                f"{{min_new_tokens}} {self.min_new_tokens} is larger than {{max_new_tokens}} {self.max_new_tokens}"
            )
        if self.is_greedy:
            for name, item in options_of(type(self)).items():
                if item.option.only_sampled and (value := getattr(self, name)) != item.default:
                    raise FieldError(f"{{{name}}} {value} needs {{temperature}} above 0 (0 is greedy)")
        elif self.num_beams > 1:
            raise FieldError(
                f"{{num_beams}} {self.num_beams} does not work with {{temperature}} {self.temperature:g}: choose one"
            )
        for name, default in (("stop_token_ids", ()), ("ignore_eos", False), ("logprobs", None)):
            if self.num_beams > 1 and getattr(self, name) != default:
                raise FieldError(f"{{{name}}} is not supported with {{num_beams}} {self.num_beams}: remove one")

    def _check_constraint(self) -> None:
        given = [name for name in CONSTRAINT_FIELDS if getattr(self, name)]
        if len(given) > 1:
            raise FieldError(f"{{{given[0]}}} and {{{given[1]}}} both constrain the text: choose one")
        if given and self.num_beams > 1:
            raise FieldError(f"{{{given[0]}}} is not supported with {{num_beams}} {self.num_beams}: remove one")
        longest = max((len(choice.encode()) for choice in self.choice), default=self.min_new_tokens)
        if longest < self.min_new_tokens:
            raise FieldError(
                f"{{min_new_tokens}} {self.min_new_tokens} cannot be met: the longest {{choice}} has {longest} tokens"
            )

    @property
    def is_constrained(self) -> bool:
        """Whether the row has a `constraint`."""
        return bool(self.json_schema or self.json_object or self.regex or self.choice or self.grammar)

    @property
    def constraint(self) -> Constraint | None:
        """The constraint on the text, or None."""
        if self.json_schema or self.json_object:
            return Constraint("json_schema", str(self.json_schema or ANY_OBJECT), self.json_whitespace == "any")
        if self.choice:
            return Constraint("choice", json.dumps(self.choice, ensure_ascii=False))
        if self.regex:
            return Constraint("regex", self.regex)
        return Constraint("grammar", str(self.grammar)) if self.grammar else None

    @property
    def moves_logits(self) -> bool:
        """Whether options may change the logit of a chosen token, so that it is not the model's own."""
        return bool(self.logit_bias or self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0
