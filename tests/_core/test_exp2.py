"""Laws of the powers of 2 of a plan's rows, and of the kernel that stands in for torch where it is right."""

import math
import os
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose

from skalign._core import exp2
from skalign._core.exp2 import FLOOR, exp2_rows_, exp2_shares_


@pytest.fixture
def kernels(monkeypatch):
    """A stand-in for the module of kernels, used on the CPU."""
    module = types.ModuleType("skalign._core.kernels")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(exp2, "_KERNEL_DEVICES", {"cpu"})
    exp2._kernel.cache_clear()
    yield module
    exp2._kernel.cache_clear()


def plain(block, floor):
    top = block.amax(dim=1)
    total = block.sub_(top[:, None]).clamp_(min=floor).exp2_().sum(dim=1)
    block.div_(total[:, None])
    return top, total


@pytest.mark.parametrize("size", [1, 1e3, 1e7])
def test_shares_are_a_softmax_that_does_not_underflow(rng, size):
    logits = size * torch.from_numpy(rng.normal(size=(4, 9)))
    shares, again = logits.clone(), logits.clone()
    top, total = exp2_shares_(shares)
    assert_allclose(shares, (logits * math.log(2)).softmax(dim=1), rtol=1e-8, atol=2.0**FLOOR)
    assert_allclose(top + total.log2(), torch.logsumexp(logits * math.log(2), 1) / math.log(2), **LAW[np.float64])
    assert float(shares.min()) >= 2.0**FLOOR / 9
    assert torch.equal(exp2_rows_(again)[1], total)
    assert torch.equal(again / total[:, None], shares)


def test_a_kernel_that_does_what_torch_does_is_used(kernels):
    calls = []

    def kernel(block, floor):
        calls.append(block.shape)
        return plain(block, floor)

    kernels.exp2_shares_ = kernel
    for _ in range(2):
        exp2_shares_(torch.zeros(2, 3))
    assert calls == [(5, 5000), (2, 3), (2, 3)]  # looked at once, then used


def other_sums(block, floor):
    top, total = plain(block, floor)
    return top, total + 1


def last_for_largest(block, floor):
    top, total = block[:, -1].clone(), block.sub_(block[:, -1:]).clamp_(min=floor).exp2_().sum(dim=1)
    block.div_(total[:, None])
    return top, total


def end_to_end(block, floor):
    return plain(torch.as_strided(block, block.shape, (block.shape[1], 1)), floor)


@pytest.mark.parametrize("kernel", [other_sums, last_for_largest, end_to_end])
def test_a_kernel_that_gives_other_numbers_is_not_used(kernels, kernel):
    kernels.exp2_shares_ = kernel
    with pytest.warns(RuntimeWarning, match="not used on cpu, where it gives other numbers than torch"):
        _, total = exp2_shares_(torch.zeros(2, 3))
    assert total.tolist() == [3, 3]
    exp2_shares_(torch.zeros(2, 3))  # told once


def test_a_kernel_is_as_precise_as_its_type(kernels):
    def kernel(block, floor):
        single = block.float()
        results = plain(single, floor)
        block.copy_(single)
        return [Z.to(block.dtype) for Z in results]

    kernels.exp2_shares_ = kernel
    with pytest.warns(RuntimeWarning, match="other numbers"):
        exp2_shares_(torch.zeros(2, 3, dtype=torch.float64))


def test_a_kernel_that_fails_is_not_used(kernels):
    def kernel(block, floor):
        raise OSError("no C compiler")

    kernels.exp2_shares_ = kernel
    with pytest.warns(RuntimeWarning, match="it failed with OSError: no C compiler. Results are the same"):
        _, total = exp2_shares_(torch.zeros(2, 3))
    assert total.tolist() == [3, 3]


def test_a_triton_that_cannot_be_imported_is_not_used(kernels):
    def broken(name):
        raise RuntimeError("no driver")

    kernels.__getattr__ = broken
    with pytest.warns(RuntimeWarning, match="it failed with RuntimeError: no driver"):
        _, total = exp2_shares_(torch.zeros(2, 3))
    assert total.tolist() == [3, 3]


def test_without_triton_nothing_is_said(kernels, monkeypatch, recwarn):
    monkeypatch.setitem(sys.modules, kernels.__name__, None)
    _, total = exp2_shares_(torch.zeros(2, 3))
    assert total.tolist() == [3, 3]
    assert len(recwarn) == 0


def test_the_kernel_equals_torch_in_tritons_interpreter():
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA")
    script = """
        import torch
        from skalign._core import exp2
        from skalign._core.kernels import exp2_shares_
        from skalign.losses import sinkhorn_from_features

        generator = torch.Generator().manual_seed(0)
        for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
            for shape in ((1, 1), (3, 10), (7, 1), (5, 4096), (4, 4097), (2, 10_000)):
                for size in (1, 1e3, 1e7):
                    block = size * torch.randn(shape, dtype=dtype, generator=generator)
                    expected, found = block.clone(), block.clone()
                    torch.testing.assert_close(exp2_shares_(found, exp2.FLOOR), exp2.exp2_shares_(expected), rtol=rtol, atol=0)
                    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)
        wide = torch.randn(3, 20, generator=generator)
        expected = wide.clone()
        exp2.exp2_shares_(expected[:, 5:9])
        exp2_shares_(wide[:, 5:9], exp2.FLOOR)
        torch.testing.assert_close(wide, expected)

        F, G = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (60, 50))
        expected = sinkhorn_from_features(F, G, 0.05)
        exp2._KERNEL_DEVICES = {"cpu"}
        found = sinkhorn_from_features(F, G, 0.05)
        assert exp2._kernel(F.device, F.dtype) is exp2_shares_
        assert found.n_iter == expected.n_iter and found.converged
        torch.testing.assert_close(found.plan, expected.plan, rtol=1e-3, atol=0)
    """
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)
