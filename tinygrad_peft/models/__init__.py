"""Pretrained checkpoints, their tokenizers, and where they come from."""
