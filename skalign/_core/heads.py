"""Alignment heads, the modules that map one view into the shared space. Knows torch, knows nothing of estimators."""

import contextlib
import threading

import numpy as np
import torch
from torch import nn

HEADS = ("linear", "layernorm", "mlp")
_ONE_THREAD = threading.RLock()  # all threads share torch's default generator
_SPARE = 0.03  # of its random weights that an output keeps for which the teacher has no direction


def build_head(kind, d_in, d_out, seed):
    """A head of one view with reproducible weights; the global random state is left as it was.

    Parameters
    ----------
    kind : {"linear", "layernorm", "mlp"} or callable
        A linear map; LayerNorm and a linear map (the authors' experiment code); Linear-GELU-Linear with a hidden layer
        as wide as the wider end; or a factory ``kind(d_in, d_out) -> nn.Module``.
    d_in, d_out : int
        Widths of the view and of the shared space.
    seed : int
        Of the weights: Xavier uniform with zero bias for the heads by name, the module's own for a factory.

    Returns
    -------
    head : nn.Module
        On the CPU, in float32.

    Raises
    ------
    ValueError
        If a factory does not return a module that maps (n, d_in) to (n, d_out).
    """
    if callable(kind):
        with random_numbers(seed):
            return _checked(kind(d_in, d_out), d_in, d_out)
    generator = torch.Generator().manual_seed(seed)
    if kind == "mlp":
        hidden = max(d_in, d_out)
        return nn.Sequential(_linear(d_in, hidden, generator), nn.GELU(), _linear(hidden, d_out, generator))
    linear = _linear(d_in, d_out, generator)
    return linear if kind == "linear" else nn.Sequential(nn.LayerNorm(d_in, dtype=torch.float32), linear)


def n_weights(kind, d_in, d_out):
    """How many numbers a head by name holds."""
    hidden = max(d_in, d_out)
    linear = (d_in + 1) * d_out
    return {"linear": linear, "layernorm": linear + 2 * d_in, "mlp": (d_in + 1) * hidden + (hidden + 1) * d_out}[kind]


@contextlib.contextmanager
def random_numbers(seed, devices=()):
    """torch's global random numbers, from this seed, for one thread at a time; their state is put back.

    Yields their generators by name.
    """
    with _ONE_THREAD, torch.random.fork_rng(devices):
        generators = {"torch": torch.default_generator}
        if devices:
            index = devices[0].index
            generators["cuda"] = torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
        for generator in generators.values():
            generator.manual_seed(seed)
        yield generators


def start_from(head, coef, intercept):
    """Give the first outputs of a linear head the map ``x @ coef + intercept``, scaled to columns of length 1 on average.

    Cosines do not see the scale; a common one keeps the optimiser's steps small beside the weights. Outputs beyond
    those of `coef` keep a little of their random weights: at 0 on both sides they would never move.
    """
    gain = coef.shape[1] ** 0.5 / np.linalg.norm(coef)
    k = coef.shape[1]
    with torch.no_grad():
        head.weight[k:] *= _SPARE
        head.weight[:k] = torch.as_tensor(gain * coef.T)
        head.bias[:k] = torch.as_tensor(gain * intercept)


def draw_back(head, start, weight):
    """Move the weights of a head towards those it started from: ``(1 - weight) * trained + weight * start``."""
    with torch.no_grad():
        for trained, first in zip(head.parameters(), start.parameters(), strict=True):
            trained.lerp_(first.to(trained), weight)


def _linear(d_in, d_out, generator):
    layer = nn.utils.skip_init(nn.Linear, d_in, d_out, dtype=torch.float32)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _checked(head, d_in, d_out):
    if not isinstance(head, nn.Module):
        raise ValueError(f"A head factory must return a torch.nn.Module, but it returned {type(head).__name__}.")
    expected = f"A head factory must return a module that maps (2, {d_in}) to (2, {d_out})"
    hint = "The factory is called as factory(d_in, d_out)."
    was_training = head.float().training
    try:
        with torch.no_grad():
            shape = tuple(head.eval()(torch.zeros(2, d_in, dtype=torch.float32)).shape)
    except RuntimeError as error:  # such as torch's word on shapes that do not multiply
        raise ValueError(f"{expected}, but it fails: {error}. {hint}") from error
    if shape != (2, d_out):
        raise ValueError(f"{expected}, but it maps to {shape}. {hint}")
    return head.train(was_training)
