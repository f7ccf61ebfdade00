"""The page of `inspect --html` as text: packing, sizes, escaping. test_browser.py tests it in a browser."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import pytest
import torch

from batchgen import Model
from batchgen.proof.inspector import Inspection, inspect_batch
from batchgen.proof.inspector.whole import NextToken, Prediction, WholeAttention, inspect_all
from batchgen.proof.page import render_page
from batchgen.proof.page.pack import ALPHABET, DEPTH, num_scores, pack
from batchgen.records import Request
from tests.support.rows import RAIN, requests_of

MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--"


def page_of(model: Model, prompts: list[str]) -> str:
    inspection = inspect_batch(model.checkpoint, requests_of(prompts))
    return render_page(inspection, *inspect_all(model, inspection))


class Elements(HTMLParser):
    """Names and attributes of a page's elements, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)


# Packing.


def unpack(text: str, digits: int) -> torch.Tensor:
    """Return distances below the largest score, as the page's script reads them."""
    most = 64**digits - 1
    signs = [ALPHABET.index(sign) for sign in text]
    codes = [sum(64 ** (digits - 1 - i) * sign for i, sign in enumerate(signs[at : at + digits]))
             for at in range(0, len(signs), digits)]  # fmt: skip
    return torch.tensor([DEPTH * ((most - code) / (most - 1)) ** 2 if code else torch.inf for code in codes])


@pytest.mark.parametrize(("digits", "error"), [(2, 2e-3), (1, 0.03)])
def test_weights_come_back_from_the_packed_scores(digits: int, error: float) -> None:
    torch.manual_seed(0)
    mask = [0, 1, 1, 1]
    scores = 3 * torch.randn(1, 1, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    packed = pack([scores], [mask], most_characters=100 if digits == 2 else 10)
    assert packed.digits == digits
    depths = unpack(packed.text, digits).split([2, 3, 4])  # the queries that are not pads
    for query, found in enumerate(depths, 1):
        expected = scores[0, 0, query, : query + 1].softmax(-1)
        assert torch.allclose((-found).softmax(-1), expected, atol=error)


def test_rows_layers_heads_queries_follow_each_other() -> None:
    layers = [torch.zeros(2, 3, 4, 4) for _ in range(5)]
    packed = pack(layers, [[0, 1, 1, 1], [1, 1, 1, 1]])
    assert len(packed.text) == packed.digits * 5 * 3 * ((2 + 3 + 4) + (1 + 2 + 3 + 4))
    assert num_scores([0, 1, 1, 1], 2) == 15


def test_only_rows_that_fit_are_packed() -> None:
    layers = [torch.zeros(3, 1, 4, 4)]  # 10 scores per row
    assert pack(layers, [[1] * 4] * 3, most_characters=60).num_rows == 3
    assert pack(layers, [[1] * 4] * 3, most_characters=30) == pack(layers, [[1] * 4] * 3, most_characters=59)
    assert pack(layers, [[1] * 4] * 3, most_characters=29).num_rows == 2


# Size.


def made_up(num_layers: int, num_heads: int) -> tuple[Inspection, WholeAttention, list[Prediction]]:
    """Return sixteen rows of 64 tokens, made up without a model."""
    from batchgen.proof.inspector import InspectedRow

    pieces = [f" token{i}" for i in range(64)]
    ids, ones, places, no, nothing = [50000] * 64, [1] * 64, list(range(64)), [False] * 64, [None] * 64
    row = InspectedRow("row", " ".join(pieces), pieces, pieces, ids, ones, places, no, nothing)
    causal = torch.ones(64, 64).tril().bool()
    layers = [torch.randn(16, num_heads, 64, 64).masked_fill(~causal, -torch.inf) for _ in range(num_layers)]
    tokens = [NextToken(i, " token", 0.1) for i in range(10)]
    return (
        Inspection("gpt2", 50256, [row] * 16, [], None),
        WholeAttention(layers, 0),
        [Prediction(tokens, tokens)] * 16,
    )


@pytest.mark.parametrize(("num_layers", "num_heads"), [(6, 6), (12, 12)], ids=["bundled", "gpt2"])
def test_sixteen_rows_of_64_tokens_stay_below_5_mb(num_layers: int, num_heads: int) -> None:
    page = render_page(*made_up(num_layers, num_heads))
    assert len(page.encode()) < 5_000_000
    assert '"packedRows": 16' in page


# Contents.


def test_the_page_is_the_same_each_time(bundled: Model) -> None:
    assert page_of(bundled, RAIN) == page_of(bundled, RAIN)


def test_text_never_becomes_markup_or_script(bundled: Model) -> None:
    plain, hostile = Elements(page_of(bundled, ["a b c"] * 2)), Elements(page_of(bundled, ["a b c", MARKUP]))
    assert set(hostile.names) == set(plain.names)
    assert hostile.names.count("script") == 3
    assert "onerror" not in dict(hostile.attributes)
    json.loads(hostile.scripts[0])


def test_ids_are_escaped_too(bundled: Model) -> None:
    inspection = inspect_batch(bundled.checkpoint, [Request(0, MARKUP, "My dog is")])
    page = render_page(inspection, *inspect_all(bundled, inspection))
    assert Elements(page).names.count("script") == 3


def test_control_characters_are_written_out(bundled: Model) -> None:
    page = page_of(bundled, ["a\x1b[31mb", "right\u202eleft"])
    assert not re.search("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202e]", page)


def test_nothing_is_loaded_from_anywhere(bundled: Model) -> None:
    page = page_of(bundled, RAIN)
    assert not {"src", "href"} & {name for name, value in Elements(page).attributes if not str(value).startswith("#")}
    assert "url(" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_the_policy_lets_this_script_run_and_no_other(bundled: Model) -> None:
    page = page_of(bundled, RAIN)
    script = Elements(page).scripts[-1]
    assert "sha256-" + b64encode(sha256(script.encode()).digest()).decode() in page
    assert "unsafe" not in page
