"""The self-contained HTML page of `inspect`: one file, no network, and text never becomes markup or script.

The template, style sheet and script are next to this file. This module only displays numbers; it computes none.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import batchgen
from batchgen.engines.continuous.prefixes import LEAST_PREFIX
from batchgen.proof.page.pack import DEPTH, Packed, pack
from batchgen.text import escape, visible

if TYPE_CHECKING:
    from batchgen.proof.inspector.batch import InspectedRow, Inspection
    from batchgen.proof.inspector.whole import NextToken, Prediction, WholeAttention

FOLDER = Path(__file__).parent
TAIL = 26  # characters of a prompt's end, shown above its predictions


def render_page(inspection: Inspection, attention: WholeAttention, predictions: Sequence[Prediction]) -> str:
    """Render the page as HTML; all text of prompts and tokens is escaped, both in the markup and in the data."""
    import transformers
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    packed = pack(attention.scores, [row.attention_mask for row in inspection.rows], attention.num_folded)
    jinja = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (Markup((FOLDER / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    return jinja.get_template("page.html.j2").render(
        inspection=inspection,
        rows=[_row(row) for row in inspection.rows],
        predictions=[_prediction(prediction) for prediction in predictions],
        data=_data(inspection, attention, packed),
        scores=Markup(packed.text),
        is_chat=any(part for row in inspection.rows for part in row.parts),
        num_shared=inspection.rows[0].num_shared,
        least_prefix=LEAST_PREFIX,
        num_left_out=len(inspection.rows) - packed.num_rows,
        num_shown=inspection.num_columns - attention.first_column,
        first_column=attention.first_column,
        style=style,
        script=script,
        style_hash=source_hash(style),
        script_hash=source_hash(script),
        versions={"batchgen": batchgen.__version__, "transformers": transformers.__version__},
    )


def source_hash(text: str) -> str:
    """The hash by which the page's Content-Security-Policy allows exactly this text."""
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def _row(row: InspectedRow) -> dict[str, Any]:
    """A row as the grid shows it."""
    kinds = [
        "pad" if not real else part or ("eos" if eos else "real")
        for real, eos, part in zip(row.attention_mask, row.is_eos, row.parts, strict=True)
    ]
    labels = [visible(label) for label in row.labels]
    text = "".join(labels[row.num_pads :])
    cells = zip(labels, kinds, row.input_ids, row.position_ids, row.attention_mask, strict=True)
    return {
        "id": escape(str(row.id)),
        "num_pads": row.num_pads,
        "num_tokens": len(row.input_ids) - row.num_pads,
        "cells": [
            {"label": label, "kind": kind, "id": token_id, "position": position, "mask": mask}
            for label, kind, token_id, position, mask in cells
        ],
        "tail": text if len(text) <= TAIL else f"…{text[-TAIL:]}",
    }


def _prediction(prediction: Prediction) -> dict[str, Any]:
    lists = {"with": prediction.with_mask, "without": prediction.without_mask}
    return {
        "most": max(token.probability for tokens in lists.values() for token in tokens),
        "lists": {name: [_next_token(token) for token in tokens] for name, tokens in lists.items()},
        "flips": prediction.with_mask[0].token_id != prediction.without_mask[0].token_id,
    }


def _next_token(token: NextToken) -> dict[str, Any]:
    return {"piece": visible(token.piece), "id": token.token_id, "probability": token.probability}


def _data(inspection: Inspection, attention: WholeAttention, packed: Packed) -> dict[str, Any]:
    """The data for the script; the template writes it as JSON that cannot end the script element."""
    layers = attention.scores
    return {
        "rows": [
            {
                "id": escape(str(row.id)),
                "labels": [visible(label) for label in row.labels],
                "ids": row.input_ids,
                "positions": row.position_ids,
                "mask": row.attention_mask,
                "eos": [int(eos) for eos in row.is_eos],
            }
            for row in inspection.rows
        ],
        "layers": len(layers),
        "heads": layers[0].shape[1],
        "firstColumn": attention.first_column,
        "folded": attention.num_folded,
        "packedRows": packed.num_rows,
        "digits": packed.digits,
        "depth": DEPTH,
    }
