"""The headings that options stand under in help."""

from batchgen.records.sampling import CHOOSING, LENGTH

INPUT, MODEL, BATCHES, CLUSTER, OUTPUT, DURABLE = (
    "Prompts",
    "Model",
    "Batches",
    "On a Ray cluster",
    "Output",
    "Interrupted runs and bad rows",
)

__all__ = ["BATCHES", "CHOOSING", "CLUSTER", "DURABLE", "INPUT", "LENGTH", "MODEL", "OUTPUT"]
