"""Select the attention to show: a layer and a head, or a mean over them. Only knows how many of them a model has."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.errors import UsageError

MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Heads:
    """A layer and a head; None stands for the mean over all of them."""

    layer: int | None
    head: int | None

    @property
    def is_one(self) -> bool:
        """Whether this is a single head, whose scores and weights belong together."""
        return self.layer is not None and self.head is not None

    def __str__(self) -> str:
        layer = "mean over layers" if self.layer is None else f"layer {self.layer}"
        head = "mean over heads" if self.head is None else f"head {self.head}"
        return f"{layer}, {head}"


def parse_heads(text: str) -> Heads:
    """Parse `0:0` (one head), `0:mean` (the mean over a layer's heads) or `mean` (over all). Raises `UsageError`.
    >>> parse_heads("2:mean"), str(parse_heads("mean"))
    (Heads(layer=2, head=None), 'mean over layers, mean over heads')
    """
    layer, _, head = text.partition(":")
    try:
        return Heads(_parse(layer), _parse(head or MEAN))
    except ValueError:
        raise UsageError(f"--attention {text}: give LAYER:HEAD such as 0:0, 0:mean or mean") from None


def _parse(text: str) -> int | None:
    if text == MEAN:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    raise ValueError(text)


def check_heads(heads: Heads, num_layers: int, num_heads: int) -> None:
    """Raise `UsageError` if the model has no such layer or head."""
    for name, wanted, number in (("layer", heads.layer, num_layers), ("head", heads.head, num_heads)):
        if wanted is not None and wanted >= number:
            raise UsageError(f"--attention: there is no {name} {wanted}; the model has {name}s 0 to {number - 1}")
