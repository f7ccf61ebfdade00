"""What tests share: tiny models, rows, results, fakes, the command run in this process. Contains no tests."""
