"""Where to train."""

import torch

from tql_offline.errors import InputError


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        InputError: `cuda` was asked for and PyTorch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device 'cuda' was asked for but PyTorch sees no GPU; run `tql-offline doctor`"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
