"""A chat template: turns a conversation into the text that the model sees. Knows nothing about tokens.

Input and output are the same as with transformers' `apply_chat_template`; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.errors import UsageError, name_in_error
from batchgen.records import Conversation

if TYPE_CHECKING:
    import jinja2

LONGEST_TEMPLATE = 2**20  # characters
LONGEST_REASON = 200  # characters of an error that are shown
OWN_NAMES = {"messages", "tools", "documents", "add_generation_prompt"}
# Names of a message's reasoning. Most templates read the first one, gpt-oss's the second.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
ONE_STRING = "give the content as one string"
PROBE = "Qquestionq"  # no template contains it
CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
Messages = list[dict[str, Any]]
START = datetime.now()  # start of the process


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """One or several named templates. `name` is used in errors; `variables` are the tokenizer's special tokens and the
    run's arguments, which a row's own arguments override. `now` is the time that `strftime_now` shows in every row.
    """

    sources: Mapping[str, str]
    name: str = "the chat template"
    variables: Mapping[str, Any] = field(default_factory=dict)
    now: datetime = START
    _wants_parts: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises `UsageError`, which names the line, for an invalid template."""
        for source in self.sources.values():
            _check(source, self.name, self.now)

    def source_for(self, conversation: Conversation) -> str:
        """The template for a conversation: `tool_use` if it has tools, otherwise `default`, otherwise the only one.

        Raises `ValueError` if there are several and none of them is `default`.
        """
        if conversation.tools is not None and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" in self.sources:
            return self.sources["default"]
        if len(self.sources) == 1:
            return next(iter(self.sources.values()))
        names = ", ".join(sorted(self.sources))
        raise ValueError(
            f"the model has several chat templates and no default: choose one with --chat-template: {names}"
        )

    def render(self, conversation: Conversation) -> str:
        """Render the text of a conversation.

        Raises a one-line `ValueError`, with the template's own message if it raised the error.
        """
        source = self.source_for(conversation)
        if taken := OWN_NAMES & conversation.arguments.keys():
            raise ValueError(f"chat_template_kwargs cannot set {min(taken)}: it has its own field")
        messages = _aliased([_given(message.to_dict()) for message in conversation.messages])
        if self._reads_only_parts(source):
            messages = _as_parts(messages)
        if conversation.continues:
            if conversation.prompts:
                raise ValueError("add_generation_prompt and continue_final_message cannot both be true")
            return self._continued(source, messages, conversation)
        return self._render(source, messages, conversation)

    def _reads_only_parts(self, source: str) -> bool:
        """Whether a template drops contents that are strings, as those of processors that expect images do."""
        if source not in self._wants_parts:
            asked = [{"role": "user", "content": PROBE}]
            self._wants_parts[source] = not self._shows(source, asked) and self._shows(source, _as_parts(asked))
        return self._wants_parts[source]

    def _shows(self, source: str, asked: Messages) -> bool:
        """Whether a question is in what the template makes of it."""
        try:
            return PROBE in self._render(source, asked, Conversation((), add_generation_prompt=True))
        except ValueError:
            return False

    def _render(self, source: str, messages: Messages, conversation: Conversation) -> str:
        variables = {**self.variables, **conversation.arguments}
        try:
            text = _compiled(source, self.now).render(
                messages=messages,
                tools=conversation.tools,
                documents=conversation.documents,
                add_generation_prompt=conversation.prompts,
                **variables,
            )
        except Exception as error:  # noqa: BLE001 - a template can raise anything
            hint = f" ({ONE_STRING})" if isinstance(error, TypeError) and any(_parts(messages)) else ""
            raise ValueError(f"{self.name}: {_reason(error)}{hint}") from None
        if any(str(parts) in text for parts in _parts(messages)):
            raise ValueError(f"{self.name} does not read content that is a list of parts: {ONE_STRING}")
        return text

    def _continued(self, source: str, messages: Messages, conversation: Conversation) -> str:
        """Render up to the end of the last message's content."""
        final = messages[-1].get("content")
        if final is None:
            raise ValueError("the last message has no content to continue")
        if "content" not in source:
            raise ValueError(f"{self.name} does not use the content of messages: the last message cannot be continued")
        text, messages[-1]["content"] = _tagged(final)
        rendered = self._render(source, messages, conversation)
        tag = CONTINUE_TAG.strip()
        if text.strip() not in rendered or tag not in rendered:
            raise ValueError(
                f"{self.name} changes the last message, so it cannot be continued: "
                "end with a user message, or set continue_final_message to false"
            )
        place = rendered.rindex(tag)
        is_whole = rendered[place : place + len(CONTINUE_TAG)] == CONTINUE_TAG
        return rendered[:place] if is_whole else rendered[:place].rstrip()


def choose_template(chosen: str, own: Mapping[str, str]) -> dict[str, str]:
    """The model's own template of that name, otherwise the one in that file. Raises `UsageError` if it is neither."""
    if chosen in own:
        return {"default": own[chosen]}
    path = Path(chosen)
    named = f"the model has {', '.join(sorted(own))}" if own else "the model has none of its own"
    try:
        with path.open("rb") as stream:
            content = stream.read(4 * LONGEST_TEMPLATE + 1)
        return {"default": content.decode("utf-8").replace("\r\n", "\n")}
    except UnicodeDecodeError as error:
        raise UsageError(f"--chat-template {chosen} is not UTF-8 at byte {error.start}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise UsageError(
            f"--chat-template {name_in_error(chosen)} is neither the name of a template ({named}) nor a readable file: "
            f"{reason}"
        ) from None


def read_arguments(assignments: list[str]) -> dict[str, Any]:
    """Parse `KEY=VALUE` assignments; a value is JSON if it is valid JSON, otherwise text. Raises `UsageError`.
    >>> read_arguments(["enable_thinking=false", "date_string=1 May 2026"])
    {'enable_thinking': False, 'date_string': '1 May 2026'}
    """
    from batchgen.formats.json_values import parse_json
    from batchgen.records.json_object import DuplicateKeyError

    arguments: dict[str, Any] = {}
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        if not sign or not key.isidentifier():
            raise UsageError(f"--chat-template-arg {assignment[:60]}: give KEY=VALUE, such as enable_thinking=false")
        if key in OWN_NAMES:
            raise UsageError(f"--chat-template-arg {key}: this is set by the rows")
        try:
            arguments[key] = parse_json(value)
        except DuplicateKeyError as error:
            raise UsageError(f"--chat-template-arg {key}: {error}") from None
        except ValueError:
            arguments[key] = value
    return arguments


def _given(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None}


def _parts(messages: Messages) -> list[list[Any]]:
    """The contents that are lists of parts."""
    return [message["content"] for message in messages if isinstance(message.get("content"), list)]


def _as_parts(messages: Messages) -> Messages:
    """Messages with each content that is a string as a list of one text part."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def _aliased(messages: Messages) -> Messages:
    """Messages with their reasoning under each name by which templates read it."""
    aliased = []
    for message in messages:
        reasoning = next((message[key] for key in REASONING_FIELDS if key in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        aliased.append(message)
    return aliased


def _tagged(content: str | list[dict[str, Any]]) -> tuple[str, str | list[dict[str, Any]]]:
    """The text to be continued, and the content with a tag appended."""
    if isinstance(content, str):
        return content, content + CONTINUE_TAG
    parts = list(content)
    parts[-1] = {**parts[-1], "text": parts[-1]["text"] + CONTINUE_TAG}
    return content[-1]["text"], parts


@cache
def _compiled(source: str, now: datetime) -> jinja2.Template:
    from batchgen.model.chat.environment import compile_chat_template

    return compile_chat_template(source, now)


def _check(source: str, name: str, now: datetime) -> None:
    import jinja2

    if len(source) > LONGEST_TEMPLATE:
        raise UsageError(f"{name}: longer than {LONGEST_TEMPLATE:,} characters")
    try:
        _compiled(source, now)
    except jinja2.TemplateSyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise UsageError(f"{name}{line}: {_reason(error)}") from None
    except (RecursionError, SyntaxError, MemoryError):
        raise UsageError(f"{name}: nested too deeply") from None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:LONGEST_REASON]
