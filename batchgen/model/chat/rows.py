"""Put requests through a chat template: render their prompts, and shorten those that are too long."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from batchgen.formats.messages import conversation_of_prompt
from batchgen.model.chat.chat import Chat, Rendered
from batchgen.records import Request, SamplingParams

WARNING = (
    "warning: the model has a chat template, but plain prompts are sent without it: add --chat to use it, "
    "or --no-chat to hide this warning"
)
Row = tuple[Request, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shorter:
    """A row rendered again without its oldest turns, or why that is not enough."""

    request: Request
    input_ids: tuple[int, ...]
    num_dropped_messages: int
    error: str | None = None


def render_rows(chat: Chat, requests: list[Request], *, parse_special: bool = False) -> list[Row]:
    """The rows as the model gets them: conversations rendered, with token ids; plain prompts unchanged, without."""
    rows = [_with_conversation(chat, request) for request in requests]
    told = [row.conversation for row in rows if row.conversation and not row.error]
    rendered = iter(chat.encode(told, parse_special=parse_special))
    return [_rendered(chat, row, next(rendered)) if row.conversation and not row.error else (row, ()) for row in rows]


def shorten(chat: Chat, request: Request, room: int, *, parse_special: bool = False) -> Shorter:
    """Drop as few of the oldest turns of a row's conversation as leave it at most `room` tokens.

    A turn is a user message and what follows it. Messages before the first turn stay, and so does the last turn.
    """
    assert request.conversation
    whole = request.conversation.messages
    starts = [place for place, message in enumerate(whole) if message.role == "user"]
    shortest = None
    low, high = 1, len(starts) - 1  # turns to drop
    while low <= high:
        drop = (low + high) // 2
        left = replace(request.conversation, messages=whole[: starts[0]] + whole[starts[drop] :])
        [row] = chat.encode([left], parse_special=parse_special)
        if row.error or len(row.input_ids) > room:
            low = drop + 1
        else:
            shortest = Shorter(replace(request, prompt=row.prompt), row.input_ids, starts[drop] - starts[0])
            high = drop - 1
    has_opening = bool(starts and starts[0]) or chat.options.system is not None
    kept = "the system message and the last turn have" if has_opening else "the last turn alone has"
    reason = f"{kept} more than {room} tokens, and there are no more turns to drop"
    return shortest or Shorter(request, (), 0, reason)


def _with_conversation(chat: Chat, request: Request) -> Request:
    if request.error:
        return request
    try:
        conversation = chat.conversation_of(request)
    except ValueError as problem:
        return replace(request, error=request.located(str(problem)))
    if conversation:
        metadata = {key: value for key, value in request.metadata.items() if key not in request.beside}
        return replace(request, conversation=conversation, metadata=metadata)
    if chat.has_template and chat.options.chat is None:
        chat.say_once(WARNING)
    if request.beside:
        _warn_of_columns(chat, request)
    return request


def _warn_of_columns(chat: Chat, request: Request) -> None:
    """Warn that columns meant for a chat template have no effect."""
    with suppress(ValueError):  # then the columns mean something else
        conversation_of_prompt(request.prompt, request.beside)
        names = " and ".join(request.beside)
        chat.say_once(f"warning: {names} have no effect on a plain prompt without --chat")


def _rendered(chat: Chat, request: Request, row: Rendered) -> Row:
    error = request.located(row.error) if row.error else None
    return replace(request, prompt=row.prompt, error=error, sampling=_with_end(chat, request)), row.input_ids


def _with_end(chat: Chat, request: Request) -> SamplingParams:
    """The row's options, with the token that closes a turn as a stop token if it is not one of the model's eos."""
    sampling, end = request.sampling, chat.unnamed_end
    if end is None or sampling.ignore_eos or sampling.num_beams > 1 or end in sampling.stop_token_ids:
        return sampling
    token = chat.tokenizer.convert_ids_to_tokens([end])[0]
    chat.say_once(
        f"the chat template closes turns with {token}, which is not an end token of the model: it ends answers too"
    )
    return replace(sampling, stop_token_ids=(*sampling.stop_token_ids, end))
