"""Which kind of weight a tensor is, by the words models use for their modules. A table to read, for display alone.

What meets what is never decided here: that is the alignment's business. A word that the table lacks is shown as it is.
"""

import re

EMBEDDINGS, HEAD, NORM = "embeddings", "head", "norm"

# In the order in which a layer uses them, which is the order of figures and tables.
KINDS = (
    EMBEDDINGS,
    "attention q",
    "attention k",
    "attention v",
    "attention qkv",
    "attention o",
    "mlp router",
    "mlp gate",
    "mlp up",
    "mlp gate+up",
    "mlp down",
    NORM,
    HEAD,
)

# The last two words of a module's name, where the last alone could mean several; then the last.
_WORDS = {
    "attn.c_proj": "attention o",
    "attn.proj": "attention o",
    "attention.dense": "attention o",
    "self_attention.dense": "attention o",
    "mlp.c_proj": "mlp down",
    "mlp.gate": "mlp router",
    "block_sparse_moe.gate": "mlp router",
    "q_proj": "attention q",
    "query": "attention q",
    "k_proj": "attention k",
    "key": "attention k",
    "v_proj": "attention v",
    "value": "attention v",
    "qkv": "attention qkv",
    "qkv_proj": "attention qkv",
    "c_attn": "attention qkv",
    "query_key_value": "attention qkv",
    "Wqkv": "attention qkv",
    "o_proj": "attention o",
    "out_proj": "attention o",
    "router": "mlp router",
    "gate_proj": "mlp gate",
    "w1": "mlp gate",
    "up_proj": "mlp up",
    "w3": "mlp up",
    "fc1": "mlp up",
    "c_fc": "mlp up",
    "dense_h_to_4h": "mlp up",
    "gate_up_proj": "mlp gate+up",
    "down_proj": "mlp down",
    "w2": "mlp down",
    "fc2": "mlp down",
    "dense_4h_to_h": "mlp down",
}
_PARAMETERS = {"weight", "bias"}  # what a module calls its own
_NORM = re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)


def kind_of(suffix: str) -> str:
    """The kind of a tensor by its name within its layer ("self_attn.q_proj.weight"), or its whole name outside one."""
    words = [word for word in suffix.split(".") if not word.isdecimal()]  # experts go together
    if len(words) > 1 and words[-1] in _PARAMETERS:
        words.pop()
    known = _WORDS.get(".".join(words[-2:])) or _WORDS.get(words[-1])
    if known:
        return known
    return NORM if _NORM.search(words[-1]) else ".".join(words)


def in_order(kinds: set[str]) -> list[str]:
    """As the table has them; what it lacks comes after, by name."""
    return [kind for kind in KINDS if kind in kinds] + sorted(kinds - set(KINDS))
