"""Find what a chat template puts around messages, what opens and closes a turn, by rendering two messages."""

from __future__ import annotations

from dataclasses import dataclass, replace

from batchgen.model.chat.template import PROBE, ChatTemplate
from batchgen.records import Conversation, Message

QUESTION, ANSWER = PROBE, "Aanswera"  # words that no template contains
# Marks around reasoning, as templates and tokenizers spell them.
REASONING_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
)


@dataclass(frozen=True, slots=True)
class Turns:
    """The text before the first user message, the text after the last assistant message, and the generation prompt."""

    opening: str
    closing: str
    generation_prompt: str

    @property
    def glue(self) -> str:
        return "\0".join((self.opening, self.closing, self.generation_prompt))


def find_turns(template: ChatTemplate) -> Turns | None:
    """Find the texts around turns; None if the template fails on a minimal conversation."""
    question = Message("user", QUESTION)
    asked = Conversation((question,), add_generation_prompt=True)
    whole = (question, Message("assistant", ANSWER))
    answered = Conversation(whole, add_generation_prompt=False, continue_final_message=False)
    try:
        prompt = template.render(asked)
        bare = template.render(replace(asked, add_generation_prompt=False))
        text = template.render(answered)
    except ValueError:
        return None
    opening, found, _ = text.partition(QUESTION)
    _, found_too, closing = text.rpartition(ANSWER)
    if not found or not found_too:
        return None
    return Turns(opening, closing, prompt[len(bare) :] if prompt.startswith(bare) else prompt.partition(QUESTION)[2])


def find_marks(texts: str, tokens: set[str]) -> tuple[str, str] | None:
    """The reasoning marks in a template's source, otherwise those in a tokenizer; None if there are none."""
    in_source = (marks for marks in REASONING_MARKS if marks[0] in texts or marks[1] in texts)
    in_tokens = (marks for marks in REASONING_MARKS if tokens.issuperset(marks))
    return next(in_source, None) or next(in_tokens, None)
