"""How a model handles conversations: its chat template, what opens and closes turns, where BOS comes from."""

from __future__ import annotations

from batchgen.doctor.facts import ChatFacts
from batchgen.model.chat import NO_TEMPLATE, Chat, open_chat
from batchgen.model.checkpoint import Checkpoint


def examine_chat(checkpoint: Checkpoint) -> ChatFacts:
    """Examine a model's chat template; a broken one is a finding."""
    name = checkpoint.name
    chat = open_chat(checkpoint)
    if not chat.has_template:
        problem = None if chat.missing == NO_TEMPLATE else chat.missing
        return ChatFacts(name, problem=problem, bos=_bos(checkpoint, None))
    try:
        names = sorted(chat.template.sources)
    except ValueError as problem:
        return ChatFacts(name, problem=str(problem))
    return _facts(checkpoint, chat, tuple(names))


def _facts(checkpoint: Checkpoint, chat: Chat, names: tuple[str, ...]) -> ChatFacts:
    turns = chat.turns
    closing = chat.closing_token_id
    return ChatFacts(
        checkpoint.name,
        templates=names,
        opens=turns.opening if turns else None,
        closes=turns.closing if turns else None,
        generation_prompt=turns.generation_prompt if turns else None,
        closing_is_eos=closing in checkpoint.eos_token_ids if closing is not None else None,
        reasoning_marks=chat.reasoning_marks,
        bos=_bos(checkpoint, turns.opening if turns else None),
    )


def _bos(checkpoint: Checkpoint, opening: str | None) -> str:
    """What adds BOS to a row: the tokenizer, the template, or nothing."""
    bos = checkpoint.tokenizer.bos_token
    ids = checkpoint.tokenizer("a")["input_ids"]
    by_tokenizer = bos is not None and ids[:1] == [checkpoint.tokenizer.bos_token_id]
    plain = f"the tokenizer adds {bos} to plain prompts" if by_tokenizer else "plain prompts get no BOS"
    if opening is None:
        return plain
    written = bos is not None and opening.startswith(bos)
    return f"the template adds {bos}; {plain}" if written else f"the template adds no BOS; {plain}"
