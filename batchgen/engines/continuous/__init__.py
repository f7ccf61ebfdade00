"""Engine `continuous`: rows in slots that refill, over a paged KV cache."""
