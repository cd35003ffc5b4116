"""Whether one GPU holds a model, or several have to share it."""

from typing import Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_ROOM: Final = 0.8  # of a GPU's free memory that weights may take before several share them


def one_gpu_holds(folder: str, dtype: str, *, trust_remote_code: bool) -> bool:
    """Whether the weights fit one GPU beside what running them needs; True also where there is no other.

    Args:
        folder: with config.json; the weights are not read.
        dtype: that they are loaded in, by torch's name.
        trust_remote_code: whether the folder's own code may be run.
    """
    from accelerate import init_empty_weights

    if torch.cuda.device_count() == 1:
        return True
    with init_empty_weights():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    size = sum(weight.numel() for weight in empty.parameters()) * getattr(torch, dtype).itemsize
    torch.cuda.empty_cache()  # what a model before has left to torch counts as used
    free, _ = torch.cuda.mem_get_info()
    return size < _ROOM * free
