"""Facts about the batch that a model sees: tokens, padding, masks, attention, padding sides. Draws nothing.

Functions that need the weights take a `Model`; the batch and its masks do not need them.
"""

from __future__ import annotations

from batchgen.proof.inspector.batch import InspectedRow, Inspection, inspect_batch
from batchgen.proof.inspector.heads import Heads, parse_heads
from batchgen.proof.inspector.masks import Masks, inspect_masks

__all__ = ["Heads", "InspectedRow", "Inspection", "Masks", "inspect_batch", "inspect_masks", "parse_heads"]
