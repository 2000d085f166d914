"""Every method in plain NumPy, with its gradients derived by hand: to read, and to check against.

The names, arguments and defaults are those of the course chapter on fine-tuning, stage 9 of "LLM
first principles". Nothing here shares code with the framework or its plugins, so that the tests may
compare the two. Each file opens with the method's formulas, and each line that computes one has it
above. Random draws come from `rng`, by default from NumPy's global generator: `np.random.seed`
makes a run repeatable. `python -m tinygrad_peft.reference` shows the methods at work.
"""

from tinygrad_peft.reference.activations import ACTIVATIONS, Activation
from tinygrad_peft.reference.adalora import (
    AdaLoRALayer,
    Importance,
    cubic_budget,
    most_important,
    orthogonality,
    triplet_scores,
)
from tinygrad_peft.reference.adapter import Adapter
from tinygrad_peft.reference.attention import (
    LoRAMultiHeadAttention,
    apply_lora_to_attention,
    attention,
    attention_backward,
    mask_bias,
)
from tinygrad_peft.reference.comparison import (
    Efficiency,
    MethodCount,
    analyze_peft_efficiency,
    compare_peft_methods,
    compute_parameter_efficiency,
    count_frozen_parameters,
    count_trainable_parameters,
)
from tinygrad_peft.reference.ia3 import IA3Linear
from tinygrad_peft.reference.layer_norm import layer_norm, layer_norm_backward
from tinygrad_peft.reference.lora import LoRALayer, LoRALinear, lora_backward
from tinygrad_peft.reference.manager import LoRAManager, LoRAWeights
from tinygrad_peft.reference.prefix import PrefixTuning
from tinygrad_peft.reference.prompt import PromptTuning
from tinygrad_peft.reference.quantization import (
    NF4_LEVELS,
    QLoRALayer,
    dequantize_4bit,
    dequantize_nf4,
    pack_4bit,
    quantize_nf4,
    quantize_to_4bit,
    unpack_4bit,
)
from tinygrad_peft.reference.reparameterization import Reparameterization
from tinygrad_peft.reference.vera import VeRALayer

__all__ = [
    "ACTIVATIONS",
    "NF4_LEVELS",
    "Activation",
    "AdaLoRALayer",
    "Adapter",
    "Efficiency",
    "IA3Linear",
    "Importance",
    "LoRALayer",
    "LoRALinear",
    "LoRAManager",
    "LoRAMultiHeadAttention",
    "LoRAWeights",
    "MethodCount",
    "PrefixTuning",
    "PromptTuning",
    "QLoRALayer",
    "Reparameterization",
    "VeRALayer",
    "analyze_peft_efficiency",
    "apply_lora_to_attention",
    "attention",
    "attention_backward",
    "compare_peft_methods",
    "compute_parameter_efficiency",
    "count_frozen_parameters",
    "count_trainable_parameters",
    "cubic_budget",
    "dequantize_4bit",
    "dequantize_nf4",
    "layer_norm",
    "layer_norm_backward",
    "lora_backward",
    "mask_bias",
    "most_important",
    "orthogonality",
    "pack_4bit",
    "quantize_nf4",
    "quantize_to_4bit",
    "triplet_scores",
    "unpack_4bit",
]
