"""LoRA: low-rank adaptation."""

__all__: list[str] = []
