"""The test suite: one folder for each folder of `batchgen`, and `support` for what several of them need."""
