"""The parts of lm-eval that `batchgen.lm_eval` needs, for environments without it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any


class FakeTemplateLM:
    def __init__(self) -> None:
        self.cached: list[tuple[Any, ...]] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *words: self.cached.append(words))


def _register(name: str) -> Callable[[type], type]:
    return lambda model: model


def rolling_windows(
    token_list: list[int], prefix_token: int, max_seq_len: int, context_len: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield pairs of input and predicted tokens: disjoint predictions, full windows."""
    whole = [prefix_token, *token_list]
    for start in range(0, len(token_list), max_seq_len):
        end = min(start + max_seq_len, len(token_list))
        yield whole[max(0, end - max_seq_len) : end], token_list[start:end]


def disjoint_window(pair: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    fed, predicted = pair
    return fed[: len(fed) - len(predicted) + 1], predicted


def _normalised(said: dict[str, Any], most: int) -> dict[str, Any]:
    given = {"until": [], "max_gen_toks": most, "do_sample": False, **said}
    return given | {"until": given["until"] if isinstance(given["until"], list) else [given["until"]]}


def _cut(text: str, stops: list[str], think_end: str | None) -> str:
    text = text.split(think_end)[-1].lstrip() if think_end else text
    return min((text.split(stop)[0] for stop in stops), key=len, default=text)


NAMES: dict[str, dict[str, Any]] = {
    "lm_eval": {},
    "lm_eval.__main__": {"cli_evaluate": lambda: print("evaluated")},
    "lm_eval.api": {},
    "lm_eval.api.model": {"TemplateLM": FakeTemplateLM},
    "lm_eval.api.registry": {"register_model": _register},
    "lm_eval.models": {},
    "lm_eval.models.utils": {
        "handle_stop_sequences": lambda until, eos: [*until, eos],
        "normalize_gen_kwargs": _normalised,
        "postprocess_generated_text": _cut,
    },
    "lm_eval.utils": {"get_rolling_token_windows": rolling_windows, "make_disjoint_window": disjoint_window},
}


@contextmanager
def fake_harness() -> Iterator[None]:
    """Replace lm-eval's modules with these, and import `batchgen.lm_eval` again."""
    before = {name: sys.modules.pop(name, None) for name in (*NAMES, "batchgen.lm_eval")}
    for name, values in NAMES.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
