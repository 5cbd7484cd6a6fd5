"""The one bridge between NumPy and torch, and the one judge of devices. Loads torch only for those who use it."""

import os
import sys

import numpy as np

FLOATS = [np.float32, np.float64]  # in this order, so that float16 becomes float32


def is_tensor(array):
    """Whether `array` is a torch tensor; never imports torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def to_numpy(array):
    """A torch tensor as a NumPy array on the CPU; anything else as it is, for scikit-learn to check."""
    if not is_tensor(array):
        return array
    array = array.detach().cpu()
    return (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()


def floats_of(view):
    """FLOATS, as scikit-learn's checks choose from them; they do not see that a polars frame holds float64."""
    polars = sys.modules.get("polars")
    is_frame = polars is not None and isinstance(view, polars.DataFrame)
    return np.float64 if is_frame and view[:0].to_numpy().dtype == np.float64 else FLOATS


def like_input(array, given):
    """A result in the kind of the input: a tensor on its device if `given` is one, else the array itself."""
    return to_tensor(array, given.device) if is_tensor(given) else array


def to_tensor(array, device="cpu", dtype=None):
    """A NumPy array as a tensor on `device`, copied where torch cannot share it (read-only, negative strides)."""
    import torch

    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = np.array(array)
    return torch.as_tensor(array, device=device, dtype=dtype)


def resolve_precision(precision, device):
    """The torch dtype in which heads are trained: "auto" is bfloat16 where a GPU has it, else float32."""
    import torch

    if precision == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if has_bfloat16 else "float32"
    return getattr(torch, precision)


def resolve_device(device):
    """The torch device meant by "auto", a name such as "cpu", "cuda", "cuda:1", "mps", or a ``torch.device``.

    Raises
    ------
    ValueError
        If the name is unknown, or the device is not there.
    """
    import torch

    if isinstance(device, str) and device == "auto":
        if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:  # one process a GPU, as torchrun starts them
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps', but it is {device!r}.") from error
    if resolved.type == "cuda" and (
        not torch.cuda.is_available() or (resolved.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f"`device` is {device!r}, but torch sees {torch.cuda.device_count()} CUDA devices here. "
            "Use device='auto' or 'cpu', or install a CUDA build of torch."
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("`device` is 'mps', but torch sees no Apple GPU here. Use device='auto' or 'cpu'.")
    if resolved.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps', but it is {device!r}.")
    return resolved
