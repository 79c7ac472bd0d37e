"""Where to train."""

import torch

from tql_offline.errors import InputError

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        InputError: `cuda` was asked for and PyTorch sees none, or the name is unknown.
    """
    if name not in DEVICES:
        raise InputError(f"there is no device {name!r} to run on; choose of {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device 'cuda' was asked for but PyTorch sees no GPU; run `tql-offline doctor`"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
