"""The settings of prompt tuning and P-tuning, with Hugging Face PEFT's names and meanings."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tinygrad_peft.peft import VirtualConfig

__all__ = ["PromptEncoderConfig", "PromptTuningConfig", "SoftPromptConfig"]


@dataclass(frozen=True, kw_only=True)
class SoftPromptConfig(VirtualConfig):
    """What prompt tuning and P-tuning have in common."""

    def untrainable(self) -> list[str]:
        """Settings that a new prompt cannot have. A stored one has them behind it."""
        return []


@dataclass(frozen=True, kw_only=True)
class PromptTuningConfig(SoftPromptConfig):
    """Trained vectors in front of the embedded tokens.

    num_virtual_tokens: how many.
    prompt_tuning_init: where they start. "RANDOM", drawn so that each feature has the mean and the
        spread that it has among the token embeddings; "SAMPLE_VOCAB", the embeddings of tokens
        drawn at random, each once as long as there are any; "TEXT", those of a text's tokens.
    prompt_tuning_init_text: that text, cut off or repeated to fill the prompt.
    tokenizer_name_or_path: a model's folder or .gguf file, whose tokenizer reads the text.
    """

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    learning_rate: ClassVar[float | None] = 1e-2

    prompt_tuning_init: Literal["RANDOM", "SAMPLE_VOCAB", "TEXT"] = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None

    def problems(self) -> list[str]:
        """List what a start from a text lacks."""
        found = super().problems()
        if self.prompt_tuning_init == "TEXT":
            found += [
                f"prompt_tuning_init='TEXT' needs {name}"
                for name in ("prompt_tuning_init_text", "tokenizer_name_or_path")
                if not getattr(self, name)
            ]
        return found

    def untrainable(self) -> list[str]:
        """A text that would not be read."""
        if self.prompt_tuning_init_text and self.prompt_tuning_init != "TEXT":
            given = f"prompt_tuning_init={self.prompt_tuning_init!r}"
            return [f"{given} reads no prompt_tuning_init_text: that is for 'TEXT'"]
        return []


@dataclass(frozen=True, kw_only=True)
class PromptEncoderConfig(SoftPromptConfig):
    """P-tuning: vectors in front of the embedded tokens, which a network computes.

    num_virtual_tokens: how many.
    encoder_reparameterization_type: the network: "MLP". "LSTM" is known so that prompts which it
        has computed can be read; it is not trained here.
    encoder_hidden_size: the width of the network; None, the model's.
    encoder_num_layers: the hidden layers of an LSTM. The MLP always has two.
    encoder_dropout: how much of a hidden layer is dropped in training. (Hugging Face PEFT has no
        dropout in the MLP, whatever the file says.)
    """

    peft_type: ClassVar[str] = "P_TUNING"
    learning_rate: ClassVar[float | None] = 2e-3

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    def problems(self) -> list[str]:
        """List a width below one, and a rate outside [0, 1)."""
        found = super().problems()
        if self.encoder_hidden_size is not None and self.encoder_hidden_size < 1:
            found.append(f"encoder_hidden_size={self.encoder_hidden_size} must be at least 1")
        if not 0 <= self.encoder_dropout < 1:
            found.append(f"encoder_dropout={self.encoder_dropout} must be at least 0 and below 1")
        return found

    def untrainable(self) -> list[str]:
        """An LSTM, and an MLP with as many layers as only an LSTM may have."""
        if self.encoder_reparameterization_type == "LSTM":
            return ["encoder_reparameterization_type='LSTM' is not trained here: use 'MLP'"]
        if self.encoder_num_layers != 2:
            return [f"encoder_num_layers={self.encoder_num_layers}: the MLP always has 2"]
        return []
