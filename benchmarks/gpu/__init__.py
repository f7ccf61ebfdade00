"""What `make gpu-check` measures; needs only torch, transformers and batchgen's own source tree."""
