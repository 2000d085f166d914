"""Files of any kind: read strictly, saved whole or not at all, claimed while a run writes them.

`saving` a folder is one transaction, which readers complete with `settled` if it was broken off.
`claimed` keeps a second process out of a folder. The readers of `reading` refuse what a file should
not hold.
"""

from tinygrad_peft.files.claims import claimed
from tinygrad_peft.files.earlier import refuse_earlier_work, replace_earlier_work
from tinygrad_peft.files.reading import (
    PICKLES,
    decode_json_object,
    is_plain_name,
    read_bytes,
    read_json_list,
    read_json_object,
    read_optional_object,
    refuse_pickle,
    sha256_of,
)
from tinygrad_peft.files.transaction import Transaction, replacing, saving, settled
from tinygrad_peft.files.writing import write_json

__all__ = [
    "PICKLES",
    "Transaction",
    "claimed",
    "decode_json_object",
    "is_plain_name",
    "read_bytes",
    "read_json_list",
    "read_json_object",
    "read_optional_object",
    "refuse_earlier_work",
    "refuse_pickle",
    "replace_earlier_work",
    "replacing",
    "saving",
    "settled",
    "sha256_of",
    "write_json",
]
