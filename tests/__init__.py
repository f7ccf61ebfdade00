"""The suite. A folder here for each room of `batchgen`, and `support` for what several of them need."""
