"""Bottleneck adapters as AdapterHub reads and writes them (adapters 1.3: methods/bottleneck.py).

With r the hidden states that a sublayer's output h is added to, and `norm` the norm of their sum
(in BERT; GPT-2 and Llama have none there), its three kinds turn the block into

    double_seq_bn   norm(r + h + u(h))                  placement="houlsby"
    seq_bn          norm(r + h + u(norm(r + h)))        placement="pfeiffer", reads="residual"
    par_bn          norm(r + h + u(r))                  placement="parallel", reads="residual"

With `original_ln_before`, u reads the sum. Where u reads the sublayer, AdapterHub applies the
base's own dropout in training before u, and this library after it.
"""

from tinygrad_peft_adapter.adapterhub.layout import ADAPTERHUB
from tinygrad_peft_adapter.adapterhub.read import read_adapterhub
from tinygrad_peft_adapter.adapterhub.write import write_adapterhub

__all__ = ["ADAPTERHUB", "read_adapterhub", "write_adapterhub"]
