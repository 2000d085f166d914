"""A plugin-based NumPy framework for parameter-efficient fine-tuning of real transformers."""

__all__: list[str] = []
