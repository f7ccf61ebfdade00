"""lm-eval on batchgen: scores, windows and texts are those of the model alone, whatever runs together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from batchgen import Model, generate
from batchgen.errors import ModelError, UsageError
from batchgen.model.guarded import TokenizerFailure
from batchgen.records import FieldError
from tests.support.harness import fake_harness

ENVIRON = {**os.environ, "HF_DATASETS_OFFLINE": "1"}
STORY = "My dog is a very nice dog. It will rain in the evening, and the old king went to the river. " * 3


@pytest.fixture(scope="module")
def harness() -> Iterator[Any]:
    with fake_harness():
        yield import_module("batchgen.lm_eval")


@pytest.fixture(scope="module")
def evaluated(harness: Any) -> Any:
    return harness.EvaluatedModel("bundled", device="cpu", max_length=48)


def ask(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def alone(model: Model, fed: list[int], scored: list[int]) -> tuple[float, bool]:
    """Return the log-probability of a row's last tokens, from one forward of it, and whether they are the likeliest."""
    with torch.inference_mode():
        logits = model.network(torch.tensor([[*fed, *scored[:-1]]])).logits[0, -len(scored) :]
    logprobs = logits.log_softmax(-1)
    total = sum(float(row[token]) for row, token in zip(logprobs, scored, strict=True))
    return total, logprobs.argmax(-1).tolist() == scored


def test_pairs_have_the_scores_of_each_alone(evaluated: Any) -> None:
    contexts = [STORY[:60], "My dog", STORY[:60], STORY[:90]]
    pairs = [(context, text) for context in contexts for text in (" a", " is a very nice dog", " of the river")]
    tokens = [(pair, *map(evaluated.tok_encode, pair)) for pair in pairs]
    found = evaluated._loglikelihood_tokens(tokens, disable_tqdm=True)
    for (_, context, continuation), (total, is_greedy) in zip(tokens, found, strict=True):
        expected, expected_greedy = alone(evaluated.model, context, continuation)
        assert total == pytest.approx(expected, abs=1e-4 * len(continuation))
        assert is_greedy == expected_greedy
    assert {words[1] for words in evaluated.cached} >= set(pairs)


def test_what_is_too_long_loses_the_beginning_of_its_context(evaluated: Any) -> None:
    context, continuation = evaluated.tok_encode(STORY), evaluated.tok_encode(" and a dog")
    assert len(context) > evaluated.max_length
    [(total, _)] = evaluated._loglikelihood_tokens([(None, context, continuation)], disable_tqdm=True)
    room = evaluated.max_length + 1 - len(continuation)
    assert total == pytest.approx(alone(evaluated.model, context[-room:], continuation)[0], abs=1e-3)
    with pytest.raises(UsageError, match="1 to 48 can be scored"):
        evaluated._loglikelihood_tokens([(None, [1], context)], disable_tqdm=True)


def test_a_long_text_is_the_sum_of_its_windows(evaluated: Any) -> None:
    ids, most = evaluated.tok_encode(STORY), evaluated.max_length
    assert len(ids) > most
    whole, expected = [evaluated.prefix_token_id, *ids], 0.0
    for start in range(0, len(ids), most):
        end = min(start + most, len(ids))
        first = max(0, end - most)
        expected += alone(evaluated.model, whole[first : start + 1], ids[start:end])[0]
    [total] = evaluated.loglikelihood_rolling([ask(STORY)], disable_tqdm=True)
    assert total == pytest.approx(expected, abs=1e-2)


def test_texts_are_what_generate_writes_up_to_a_stop(evaluated: Any) -> None:
    prompts = ["My dog is", "It will rain in the", "Once upon a time"]
    asked = [ask(prompt, {"until": [" dog"], "max_gen_toks": 12}) for prompt in prompts]
    expected = generate(prompts, evaluated.model, max_new_tokens=12, stop=[" dog"])
    assert evaluated.generate_until(asked, disable_tqdm=True) == [result.text for result in expected]


def test_samples_of_one_context_differ_and_a_seed_repeats_them(evaluated: Any) -> None:
    said = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "seed": 3}
    texts = evaluated.generate_until([ask("My dog is", said)] * 4, disable_tqdm=True)
    assert len(set(texts)) > 1
    assert evaluated.generate_until([ask("My dog is", said)] * 4, disable_tqdm=True) == texts


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"trust_remote_code": True}, "never runs code"),
        ({"parallelize": True}, "no argument parallelize"),
        ({"batch_size": "many"}, "neither a number nor auto"),
    ],
)
def test_what_batchgen_cannot_do_is_said_by_name(harness: Any, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        harness.EvaluatedModel("bundled", device="cpu", **arguments)


def test_an_option_that_has_no_effect_is_refused(evaluated: Any) -> None:
    with pytest.raises(UsageError, match="batchgen has no num_beams"):
        evaluated.generate_until([ask("My dog", {"num_beams": 4})], disable_tqdm=True)


def test_a_model_without_a_chat_template_says_so(evaluated: Any) -> None:
    with pytest.raises(UsageError, match="no chat template: leave out --apply_chat_template"):
        evaluated.chat_template(True)


def test_a_template_that_takes_no_system_message_gets_the_others(harness: Any, tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    model = harness.EvaluatedModel("bundled", device="cpu")
    assert "raise_exception" in model.chat_template(str(template))
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert model.apply_chat_template(turns) == "<user>Hi<assistant>"


def test_a_conversation_that_the_template_refuses_is_told_as_an_error(harness: Any, tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ raise_exception('never') }}")
    model = harness.EvaluatedModel("bundled", device="cpu")
    model.chat_template(str(template))
    with pytest.raises(ModelError, match="never"):
        model.apply_chat_template([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ModelError("no such model"), "error: no such model"),
        (TokenizerFailure("the tokenizer fails on this text"), "error: the tokenizer fails on this text"),
        (FieldError("{top_p} 3.0 is not in (0, 1]"), "error: top_p 3.0 is not in (0, 1]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_an_evaluation_is_one_line(
    harness: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, end: str
) -> None:
    def evaluate() -> None:
        raise error

    monkeypatch.setattr(harness, "cli_evaluate", evaluate)
    with pytest.raises(SystemExit) as exit_:
        harness.main()
    assert exit_.value.code == end


def start(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_the_extra_one_line_says_what_to_install() -> None:
    run = "import runpy, sys; sys.modules['lm_eval'] = None; runpy.run_module('batchgen.lm_eval', run_name='__main__')"
    ended = start(run)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "pip install 'batchgen[lm-eval]'" in ended.stderr


# With lm-eval itself.

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
target_delimiter: ""
{more}
"""
MORE = {
    "multiple_choice": 'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
    "metric_list: [{metric: acc}, {metric: acc_norm}]",
    "loglikelihood_rolling": 'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: word_perplexity}]',
    "generate_until": 'doc_to_text: "{{question}}"\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: bleu}]\n'
    'generation_kwargs: {until: ["."], max_gen_toks: 8}',
}


@pytest.mark.slow
def test_the_real_lm_eval_gets_the_numbers_of_its_own_model(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    rows = [
        {"question": STORY[at : at + 70], "choices": [" dog", " the river", " rain"], "answer": at % 3, "text": STORY}
        for at in range(0, 60, 6)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, more in MORE.items():
        (tmp_path / f"{kind}.yaml").write_text(TASK.format(name=f"own_{kind}", file=data, kind=kind, more=more))
    results = {}
    for model in ("hf", "batchgen"):
        folder = Path(import_module("batchgen").__file__ or "").parent / "bundled"
        command = [
            sys.executable,
            "-m",
            "batchgen.lm_eval",
            "--model",
            model,
            "--model_args",
            f"pretrained={folder},dtype=float32",
        ]
        command += ["--device", "cpu", "--tasks", ",".join(f"own_{kind}" for kind in MORE)]
        command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / model)]
        subprocess.run(command, check=True, capture_output=True, env={**ENVIRON, "HF_HOME": str(tmp_path)})
        [found] = (tmp_path / model).rglob("results_*.json")
        results[model] = json.loads(found.read_text())["results"]
    for task, numbers in results["hf"].items():
        for name, number in numbers.items():
            if isinstance(number, float):
                assert results["batchgen"][task][name] == pytest.approx(number, abs=1e-4), (task, name)
