"""The settings of prompt tuning and P-tuning, with Hugging Face PEFT's names and meanings."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Never

from tinygrad_peft.peft import FileFormat, VirtualConfig, dropout_problems

__all__ = ["PromptEncoderConfig", "PromptTuningConfig", "SoftPromptConfig"]


@dataclass(frozen=True, kw_only=True)
class SoftPromptConfig(VirtualConfig):
    """The common settings of prompt tuning and P-tuning."""

    def untrainable(self) -> list[str]:
        """List settings that a new prompt cannot have; a stored one may."""
        return []


@dataclass(frozen=True, kw_only=True)
class PromptTuningConfig(SoftPromptConfig):
    """Trained vectors in front of the embedded tokens.

    num_virtual_tokens: the number of vectors.
    prompt_tuning_init: their initialisation. "RANDOM", normally distributed with the mean and the
        standard deviation of each feature of the token embeddings; "SAMPLE_VOCAB", embeddings of
        random tokens, without repetition while there are enough; "TEXT", embeddings of a text.
    prompt_tuning_init_text: the text, truncated or repeated to fill the prompt.
    tokenizer_name_or_path: a model's folder or .gguf file with the tokenizer for the text.
    """

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    learning_rate: ClassVar[float | None] = 1e-2
    file_format: ClassVar[FileFormat[Never]] = replace(
        VirtualConfig.file_format,
        training_settings=(
            *("prompt_tuning_init", "prompt_tuning_init_text"),
            *("tokenizer_name_or_path", "tokenizer_kwargs"),
        ),
    )

    prompt_tuning_init: Literal["RANDOM", "SAMPLE_VOCAB", "TEXT"] = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None

    def problems(self) -> list[str]:
        """List the settings that initialisation from a text lacks."""
        found = super().problems()
        if self.prompt_tuning_init == "TEXT":
            found += [
                f"prompt_tuning_init='TEXT' needs {name}"
                for name in ("prompt_tuning_init_text", "tokenizer_name_or_path")
                if not getattr(self, name)
            ]
        return found

    def untrainable(self) -> list[str]:
        """List a text that would be ignored."""
        if self.prompt_tuning_init_text and self.prompt_tuning_init != "TEXT":
            given = f"prompt_tuning_init={self.prompt_tuning_init!r}"
            return [f"{given} ignores prompt_tuning_init_text: expected 'TEXT'"]
        return []


@dataclass(frozen=True, kw_only=True)
class PromptEncoderConfig(SoftPromptConfig):
    """P-tuning: vectors in front of the embedded tokens, reparameterised by a network.

    num_virtual_tokens: the number of vectors.
    encoder_reparameterization_type: the network: "MLP". Stored prompts of an "LSTM" can be read,
        but none is trained here.
    encoder_hidden_size: the width of the network; None for the model's.
    encoder_num_layers: the hidden layers of an LSTM. The MLP always has two.
    encoder_dropout: the dropout rate of the hidden layers. (Hugging Face PEFT has no dropout in the
        MLP, and ignores this.)
    """

    peft_type: ClassVar[str] = "P_TUNING"
    learning_rate: ClassVar[float | None] = 2e-3
    file_format: ClassVar[FileFormat[Never]] = replace(
        VirtualConfig.file_format,
        training_settings=(
            *("encoder_reparameterization_type", "encoder_hidden_size"),
            *("encoder_num_layers", "encoder_dropout"),
        ),
    )

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    def problems(self) -> list[str]:
        """List a width below one, and a rate outside [0, 1)."""
        found = [*super().problems(), *dropout_problems(encoder_dropout=self.encoder_dropout)]
        if self.encoder_hidden_size is not None and self.encoder_hidden_size < 1:
            found.append(f"encoder_hidden_size={self.encoder_hidden_size} must be at least 1")
        return found

    def untrainable(self) -> list[str]:
        """List an LSTM, and an MLP with a number of layers other than two."""
        if self.encoder_reparameterization_type == "LSTM":
            return ["encoder_reparameterization_type='LSTM' is not trained here: use 'MLP'"]
        if self.encoder_num_layers != 2:
            return [f"encoder_num_layers={self.encoder_num_layers}: the MLP always has 2"]
        return []
