"""From logits to the next token of each row: parameters per row, filters, keyed draws."""
