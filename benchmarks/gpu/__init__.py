"""What `make gpu-check` measures; needs torch, transformers and batchgen's own tree, and nothing else."""
