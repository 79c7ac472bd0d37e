"""Where to train."""

import os
from collections.abc import Sequence

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


def gpu_names(numbers: Sequence[int]) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls some of the GPUs that this process sees.

    Args:
        numbers: their indices, from 0; where the variable is set, among the GPUs that it names.

    Raises:
        InputError: there is no such GPU.
    """
    count = torch.cuda.device_count()
    for number in numbers:
        if number >= count:
            raise InputError(
                f"--gpus names GPU {number} and PyTorch sees {count} of them, counted from 0; "
                "name others, or run `tql-offline doctor`"
            )
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = own.split(",") if own else list(map(str, range(count)))
    return tuple(names[number].strip() for number in numbers)
