"""Runs of conversations: what is sent, what comes back, what is refused before weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch

import batchgen
from batchgen.engines.choice import KINDS
from batchgen.model import Model, open_checkpoint
from batchgen.model.chat import make_chat, open_chat, render_rows
from batchgen.model.padding import encode
from batchgen.records import Batch, ChatOptions, Conversation, Message, Request, SamplingParams
from tests.support.command import failure, invoke, records, run
from tests.support.conversations import PIECES, draw_conversation
from tests.support.models import generate_ids_alone

HI = [{"role": "user", "content": "My dog is"}]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
EOS = 50256


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    return path


def test_a_plain_prompt_is_a_users_message(template: Path) -> None:
    [record] = records(run("-p", "My dog is", "--chat", "--chat-template", template, "--ids"))
    assert record["prompt"] == "[user]My dog is<|endoftext|>[assistant]"
    assert record["messages"] == HI
    assert record["input_ids"].count(EOS) == 1


def test_a_system_message_goes_before_conversations_that_have_none(tmp_path: Path, template: Path) -> None:
    own = [{"role": "system", "content": "s"}, *HI]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (HI, own)))
    (tmp_path / "system.txt").write_text("Be brief.\n")
    options = ["--chat-template", template, "--system-file", tmp_path / "system.txt"]
    first, second, third = records(run(rows, "-p", "a", *options))
    assert first["prompt"].startswith("[system]Be brief.<|endoftext|>[user]My dog is")
    assert second["prompt"].startswith("[system]s<|endoftext|>[user]My dog is")
    assert third["prompt"].startswith("[system]Be brief.<|endoftext|>[user]a<")


def test_the_template_sees_the_runs_arguments_and_a_rows_own(tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{{ a }} {{ b }} {{ messages[0].content }}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": HI, "chat_template_kwargs": {"b": "row"}}))
    arguments = ["--chat-template-arg", "a=[1]", "--chat-template-arg", "b=run"]
    [record] = records(run(rows, "--chat-template", path, *arguments))
    assert record["prompt"] == "[1] row My dog is"


def rows_of(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


BESIDE = {"tools": [{"type": "function", "function": {"name": "add"}}], "chat_template_kwargs": {"b": "row"}}


def test_what_stands_beside_a_plain_prompt_goes_to_the_template_as_with_messages(tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{{ tools[0].function.name }} {{ b }} {{ messages[0].content }}")
    rows = rows_of(tmp_path, {"prompt": "My dog is", **BESIDE}, {"messages": HI, **BESIDE, "label": 1})
    plain, told = records(run(rows, "--chat", "--chat-template", path))
    assert plain["prompt"] == told["prompt"] == "add row My dog is"
    assert (plain["metadata"], told["metadata"]) == ({}, {"label": 1})
    cells = tmp_path / "rows.csv"
    cells.write_text(
        'prompt,tools,chat_template_kwargs\nMy dog is,"[{""function"": {""name"": ""f""}}]","{""b"": 1}"\n'
    )
    [record] = records(run(cells, "--chat", "--chat-template", path))
    assert record["prompt"] == "f 1 My dog is"


def test_what_cannot_go_to_the_template_beside_a_prompt_is_named(tmp_path: Path, template: Path) -> None:
    rows = rows_of(tmp_path, {"prompt": "a", "tools": 1}, {"prompt": "My dog is"})
    bad, good = records(run(rows, "--chat", "--chat-template", template))
    assert bad["error"] == f"{rows}:1: tools is not a list of objects"
    assert good["error"] is None


def test_a_column_that_the_prompts_own_template_uses_is_not_the_chat_templates(tmp_path: Path, template: Path) -> None:
    rows = rows_of(tmp_path, {"documents": "My dog"})
    [record] = records(run(rows, "--template", "{{ documents }} is", "--chat", "--chat-template", template))
    assert record["messages"] == HI
    assert record["metadata"] == {"documents": "My dog"}


def test_what_stands_beside_a_plain_prompt_without_chat_is_warned_of_once(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"prompt": "My dog is", **BESIDE}, {"prompt": "My dog is", **BESIDE})
    line = "warning: tools and chat_template_kwargs have no effect on a plain prompt without --chat"
    assert run(rows).stderr.count(line) == 1
    assert "warning" not in run(rows_of(tmp_path, {"prompt": "My dog is", "documents": "a.pdf"})).stderr


def test_chat_without_a_template_is_refused_before_weights_load() -> None:
    line = failure(run("-p", "a", "--chat"), 2)
    assert "--chat needs a chat template, and the model has none: add --chat-template FILE" in line


def test_messages_without_a_template_are_an_error_record(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": HI}) + "\n" + json.dumps({"prompt": "My dog is"}))
    bad, good = records(run(rows))
    assert bad["error"] == (
        "rows.jsonl:1: messages need a chat template, and the model has none: add --chat-template FILE"
    ).replace("rows.jsonl", str(rows))
    assert good["text"] == " a very nice dog."


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--no-chat", "--system", "a"],
            "--system turns prompts into conversations, but --no-chat is also given: choose one",
        ),
        (["--system", "a", "--system-file", "b"], "--system and --system-file both set the system message"),
        (["--chat-template-arg", "a"], "--chat-template-arg a: give KEY=VALUE"),
        (["--chat-template", "nothing"], "--chat-template nothing is neither the name of a template"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: list[str], line: str) -> None:
    assert line in failure(run("-p", "a", *options), 2)


def test_plain_prompts_to_a_model_with_a_template_are_warned_of_once(template: Path) -> None:
    warned = run("-p", "a", "-p", "b", "--chat-template", template).stderr
    assert warned.count("the model has a chat template, but plain prompts are sent without it") == 1
    assert "warning" not in run("-p", "a", "--no-chat", "--chat-template", template).stderr


def test_python_takes_messages_and_a_system_message(template: Path) -> None:
    options = {"model": "bundled", "chat_template": str(template), "max_new_tokens": 2}
    told, plain = batchgen.generate([{"messages": HI}, "a"], system="s", **options)
    assert told.prompt.startswith("[system]s<|endoftext|>[user]My dog is")
    assert (told.messages, plain.messages) == (HI, [{"role": "user", "content": "a"}])
    assert plain.prompt.startswith("[system]s<|endoftext|>[user]a<")
    with pytest.raises(batchgen.BatchgenError, match="system turns prompts into conversations"):
        batchgen.generate(["a"], system="s", chat=False, **options)


def test_a_run_goes_on_only_with_the_same_template(tmp_path: Path, template: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ["-p", "My dog is", "--chat", "--chat-template", template, "-o", out, "--keep-store"]
    assert run(*command).exit_code == 0
    template.write_text(TEMPLATE.replace("[", "("), encoding="utf-8")
    assert "was started with --chat-template " in failure(run(*command, "--resume"), 1)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "sqlite"])
def test_conversations_are_written_in_every_format(tmp_path: Path, template: Path, form: str) -> None:
    out = tmp_path / f"out.{form}"
    assert run("-p", "My dog is", "--chat", "--chat-template", template, "-o", out).exit_code == 0
    assert out.stat().st_size


def test_plan_counts_the_templates_tokens(template: Path) -> None:
    command = ["plan", "-p", "My dog is", "--model", "bundled", "--json"]
    plain = json.loads(invoke(*command).stdout)
    chat = json.loads(invoke(*command, "--chat", "--chat-template", template).stdout)
    assert chat["prompt_tokens"] > plain["prompt_tokens"]


def test_verify_takes_conversations(template: Path) -> None:
    options = ["--chat", "--chat-template", template, "--max-new-tokens", 2]
    result = invoke("verify", "-p", "My dog is", "-p", "The rain", "--model", "bundled", *options)
    assert result.exit_code == 0, result.stderr


def test_inspect_tells_template_roles_and_contents_apart(template: Path) -> None:
    options = ["--chat", "--chat-template", template]
    command = ["inspect", "-p", "My dog is", "-p", "My cat", "--model", "bundled", *options]
    row, _ = json.loads(invoke(*command, "--json").stdout)["rows"]
    parts = dict(zip(row["tokens"], row["parts"], strict=True))
    assert {parts["My"], parts["Ġdog"]} == {"content"}
    assert {parts["user"], parts["<|endoftext|>"]} == {"role", "template"}
    shown = invoke(*command).stdout
    assert "template  role  content" in shown
    assert "are the same in every row" in shown
    assert "computes them only once" not in shown  # too few to be worth a forward of their own
    long = "You answer in one short and friendly sentence, and never in more than that, " * 2
    system = invoke(*command, "--system", long)
    assert "are the same in every row: a run with many rows computes them only once" in " ".join(system.stdout.split())


@pytest.mark.parametrize("engine", KINDS)
def test_conversations_are_answered_as_generate_answers_their_ids(
    tiny_models: dict[str, Model], template: Path, engine: str
) -> None:
    model, random = tiny_models["llama"], Random(5)
    drawn = [draw_conversation(random, lambda random: random.choice(PIECES) * 2) for _ in range(24)]
    rows = [{"messages": [message.to_dict() for message in conversation.messages]} for conversation in drawn]
    results = batchgen.generate(rows, model, engine=engine, chat_template=str(template), max_new_tokens=8)
    assert [result.error for result in results] == [None] * 24
    alone = [generate_ids_alone(model, result.input_ids, max_new_tokens=8) for result in results]
    assert [list(result.output_ids) for result in results] == alone
    decode = model.checkpoint.tokenizer.decode
    assert [result.text for result in results] == [decode(ids, skip_special_tokens=True) for ids in alone]


def test_a_system_prompt_that_all_rows_share_is_computed_once(
    bundled: Model, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {True: 0, False: 0}
    forward = Model.forward
    rows = [{"messages": [{"role": "user", "content": f"number {i}"}]} for i in range(40)]
    for share in columns:

        def count(model: Model, batch: Batch, *args: int, share: bool = share, **options: object) -> torch.Tensor:
            columns[share] += batch.input_ids.numel()
            return forward(model, batch, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Model, "forward", count)
        options = {"chat_template": str(template), "system": "The rain. " * 100, "share_prefixes": share}
        batchgen.generate(rows, bundled, max_new_tokens=8, **options)
    assert columns[False] > 5 * columns[True] > 0


# Too long.


def truncated(num_turns: int, n_positions: int | None, template: Path) -> tuple[list[str], str | None]:
    """Return what is left of a conversation with a number of turns, and the row's error."""
    checkpoint = open_checkpoint("bundled", weights=False)
    chat = open_chat(checkpoint, ChatOptions(template=str(template)))
    messages = [Message("system", "sys")]
    for turn in range(num_turns):
        messages += [Message("user", f"q{turn}"), Message("assistant", f"a{turn}")]
    row = Request(0, "0", "", SamplingParams(max_new_tokens=1), conversation=Conversation(tuple(messages[:-1])))
    [sequence] = encode([row], checkpoint.tokenizer, n_positions=n_positions, too_long="truncate", chat=chat)
    left = [message.text for message in messages if message.text in sequence.request.prompt]
    assert n_positions is None or len(sequence.input_ids) < n_positions or sequence.error
    return left, sequence.error


def test_the_oldest_whole_turns_are_dropped_after_the_system_message(template: Path) -> None:
    whole, _ = truncated(4, None, template)
    assert whole == ["sys", "q0", "a0", "q1", "a1", "q2", "a2", "q3"]
    left, error = truncated(4, 40, template)
    assert (left[0], left[-1], error) == ("sys", "q3", None)
    assert left[1].startswith("q")
    assert 2 < len(left) < 8


def test_a_last_turn_that_is_too_long_alone_is_an_error(template: Path) -> None:
    _, error = truncated(4, 8, template)
    assert error == "the system message and the last turn have more than 7 tokens, and there are no more turns to drop"


def test_a_row_says_how_many_messages_were_dropped(bundled: Model, template: Path) -> None:
    long = {"role": "user", "content": "rain " * 1200}
    messages = [long, {"role": "assistant", "content": "yes"}, *HI]
    options = {"chat_template": str(template), "too_long": "truncate", "max_new_tokens": 2}
    [result] = batchgen.generate([{"messages": messages}], model=bundled, **options)
    assert result.metadata["batchgen_dropped_messages"] == 2
    assert result.prompt == "[user]My dog is<|endoftext|>[assistant]"
    assert result.messages == messages


@pytest.mark.parametrize("kind", ["codec", "tokenizer"])
def test_the_token_that_closes_a_turn_ends_an_answer_though_the_model_does_not_name_it(
    kind: str, template: Path
) -> None:
    tokenizer = getattr(open_checkpoint("bundled", weights=False), kind)
    said: list[str] = []
    options = ChatOptions(chat=True, template=str(template))
    chat = make_chat({}, lambda: tokenizer, options, say=said.append, eos_token_ids=frozenset({1}))
    rows = [Request(i, str(i), "a", SamplingParams(ignore_eos=i == 2)) for i in range(3)]
    first, second, ignoring = (row.sampling.stop_token_ids for row, _ in render_rows(chat, rows))
    assert (first, second, ignoring) == ((EOS,), (EOS,), ())
    assert said == [
        "the chat template closes turns with <|endoftext|>, which is not an end token of the model: it ends answers too"
    ]


def test_half_a_character_is_refused_in_the_system_message(template: Path) -> None:
    line = failure(run("-p", "My dog is", "--system", "a\udcff", "--chat-template", template), 2)
    assert line == "batchgen: error: --system has a lone surrogate (half a character)"
