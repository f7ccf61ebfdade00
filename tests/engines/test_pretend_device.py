"""Both engines on a device without access to the host's memory: the same tokens, and little traffic in each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from batchgen import Model
from batchgen.engines import finish_all, make_engine
from batchgen.model import Checkpoint
from batchgen.records import EngineOptions, Sequence
from tests.support.models import ARCHITECTURES, model_of
from tests.support.pretend_device import DEVICE, Traffic, is_supported, on_device, pretend_device
from tests.support.rows import encoded, ragged_prompts

pytestmark = pytest.mark.skipif(
    not is_supported(), reason=f"the pretend device: torch {torch.__version__} lets no device be written in Python"
)

SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
}
# For a step of several rows, without near ties and rows that leave. In `_call_generate` transformers itself waits: to
# learn whether a row continues, and whether the mask hides anything.
DRAW_SYNCS = {"nonzero in draw": 1}
DRAW_UPLOADS = {"upload in column": 4, "upload in _decide_sampled": 1}
STEP_SYNCS = {
    "continuous": {"tolist in _decide": 1},
    "reference": {"tolist in _decide": 1, "item in _call_generate": 2},
}
STEP_UPLOADS = {
    "continuous": {"upload in step_view": 1, "upload in inputs": 3},
    "reference": {"upload in __call__": 3},  # which rows are finished; the chosen tokens, and their rows
}


@pytest.fixture
def traffic() -> Traffic:
    made = pretend_device()
    made.clear()
    return made


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Model:
    return model_of(ARCHITECTURES[request.param], checkpoint)


def rows_of(model: Model, sampling: str, **options: object) -> list[Sequence]:
    return encoded(ragged_prompts(6, longest=12), model, max_new_tokens=8, **SAMPLINGS[sampling], **options)


WAITS: list[tuple[str, Callable[[torch.Tensor], object]]] = [
    ("item", lambda x: x[0, 0].item()),
    ("item", lambda x: bool((x > 0).any())),
    ("item", lambda x: int(x.max())),
    ("item", lambda x: "positive" if x.sum() > 0 else "not"),
    ("tolist", lambda x: x.tolist()),
    ("nonzero", lambda x: (x > 0).nonzero()),
    ("index by a mask", lambda x: x[x > 0]),
    ("copy to the host", lambda x: x.cpu()),
    ("copy to the host", lambda x: x.to("cpu", torch.float64)),
    ("copy to the host", lambda x: torch.empty(2, 2).copy_(x)),
]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("name", "wait"), WAITS)
def test_each_wait_for_the_device_is_counted_once(
    traffic: Traffic, mode: type, name: str, wait: Callable[[torch.Tensor], object]
) -> None:
    with mode():
        x = torch.ones(2, 2, device=DEVICE)
        wait(x)
    assert {what.split(" in ")[0]: count for what, count in traffic.syncs.items()} == {name: 1}
    assert not traffic.uploads


SENDS: list[Callable[[torch.Tensor], object]] = [
    lambda x: torch.tensor([1.0, 2.0], device=x.device),
    lambda x: torch.ones(2).to(x.device),
    lambda x: x.copy_(torch.ones(2, 2)),
    lambda x: x[[0, 1]],
    lambda x: x[torch.tensor([1])],
]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("send", SENDS)
def test_each_upload_is_counted_once(traffic: Traffic, mode: type, send: Callable[[torch.Tensor], object]) -> None:
    with mode():
        send(torch.ones(2, 2, device=DEVICE))
    assert traffic.uploads.total() == 1
    assert not traffic.syncs


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_stays_on_the_device_is_no_traffic(traffic: Traffic, mode: type) -> None:
    with mode():
        x = torch.arange(4.0, device=DEVICE).view(2, 2)
        x[0] = 5
        y = torch.cat([x @ x.mT, x.new_zeros(1, 2)]).to(DEVICE) + 1
    assert not traffic.syncs
    assert not traffic.uploads
    assert y.tolist() == [[51.0, 26.0], [26.0, 14.0], [1.0, 1.0]]


def test_the_device_refuses_tensors_of_the_host(traffic: Traffic) -> None:
    x = torch.ones(2, 2, device=DEVICE)
    for mix in (lambda: x + torch.ones(2, 2), lambda: torch.cat([x, torch.ones(2, 2)]), lambda: torch.ones(2, 2) @ x):
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            mix()
    assert (x + torch.tensor(1.0)).tolist() == [[2.0, 2.0], [2.0, 2.0]]  # a number may come from anywhere


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("engine", ["reference", "continuous"])
def test_tokens_are_those_of_the_cpu(traffic: Traffic, model: Model, engine: str, sampling: str) -> None:
    expected, found = rows_of(model, sampling), rows_of(model, sampling)
    for where, rows in ((model, expected), (on_device(model), found)):
        list(finish_all(make_engine(where, EngineOptions(engine, batch_size=4)), rows))
    assert all(row.output_ids and not row.error for row in found)
    assert [row.output_ids for row in found] == [row.output_ids for row in expected]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("engine", ["reference", "continuous"])
def test_a_step_waits_for_the_device_and_sends_to_it_no_more_often_than_this(
    traffic: Traffic, model: Model, engine: str, sampling: str
) -> None:
    slots = make_engine(on_device(model), EngineOptions(engine, exact=False))
    slots.add(rows_of(model, sampling, ignore_eos=True))
    slots.step()  # the prefill
    is_drawn = sampling == "sampled"
    syncs = Counter(STEP_SYNCS[engine]) + Counter(DRAW_SYNCS if is_drawn else {})
    uploads = Counter(STEP_UPLOADS[engine]) + Counter(DRAW_UPLOADS if is_drawn else {})
    for _ in range(4):
        traffic.clear()
        assert slots.step() == []
        assert not traffic.syncs - syncs, traffic.syncs
        assert not traffic.uploads - uploads, traffic.uploads
    slots.close()
