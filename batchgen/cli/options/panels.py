"""The headings of the options in help."""

from batchgen.records.sampling import CHOOSING, LENGTH

INPUT, CHAT, MODEL, BATCHES, CLUSTER, OUTPUT, DURABLE = (
    "Prompts",
    "Conversations",
    "Model",
    "Batches",
    "On a Ray cluster",
    "Output",
    "Interrupted runs and bad rows",
)

__all__ = ["BATCHES", "CHAT", "CHOOSING", "CLUSTER", "DURABLE", "INPUT", "LENGTH", "MODEL", "OUTPUT"]
