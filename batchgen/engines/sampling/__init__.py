"""From logits to the next token of each row: parameters over rows, filters, keyed draws."""
