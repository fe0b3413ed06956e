"""Training on what was pruned: the masks under which a trainer's full forward gives the engine's log-probabilities.

Needs torch and transformers, and neither SGLang nor a server.
"""

from star_kv_sglang.kept_format import KeptFormatError, KeptRecord, PruneMask
from star_kv_sglang.rl.logprobs import answer_logprobs, token_logprobs
from star_kv_sglang.rl.masks import MaskError, masked_attention, visible
from star_kv_sglang.rl.records import read_kept

__all__ = [
    "KeptFormatError",
    "KeptRecord",
    "MaskError",
    "PruneMask",
    "answer_logprobs",
    "masked_attention",
    "read_kept",
    "token_logprobs",
    "visible",
]
