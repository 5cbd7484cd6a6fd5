"""Laws of settings that threads share: set while any thread is inside, put back by the last."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from skalign import CCATeacher, SOTAlign
from skalign._core.affinity import full_precision
from skalign._core.heads import build_head
from skalign._core.threads import Shared
from skalign._teachers import _ONE_BLAS_THREAD


class Setting:
    """A value of the whole process, and a context that saves, changes and restores it, as libraries do."""

    def __init__(self):
        self.value = "outside"

    def __enter__(self):
        self.before, self.value = self.value, "inside"

    def __exit__(self, *_):
        self.value = self.before


def overlap(context):
    """Two threads inside a context, of which the first to come is the first to go; what they did not do is raised."""
    came, gone = threading.Event(), threading.Event()

    def first():
        with context():
            assert came.wait(20)
        gone.set()

    def second():
        with context():
            came.set()
            assert gone.wait(20)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result(30)


def test_the_last_thread_out_puts_back_what_was_before():
    setting = Setting()
    shared = Shared(lambda: setting)
    with shared:
        with shared:
            assert setting.value == "inside"
        assert setting.value == "inside"
    assert setting.value == "outside"
    overlap(lambda: shared)
    assert setting.value == "outside"


def test_a_setting_is_put_back_after_an_error():
    setting = Setting()
    with pytest.raises(KeyError), Shared(lambda: setting):
        raise KeyError
    assert setting.value == "outside"


def test_threads_leave_the_precision_of_products_as_it_was():
    torch.set_float32_matmul_precision("high")
    try:
        overlap(lambda: full_precision(torch.device("cpu")))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_leave_the_number_of_blas_threads_as_it_was():
    def n_threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    with threadpool_limits(3, user_api="blas"):
        before = n_threads()
        overlap(lambda: _ONE_BLAS_THREAD)
        assert n_threads() == before
    with _ONE_BLAS_THREAD:
        assert set(n_threads()) == {1}


def head_with_dropout(d_in, d_out):
    return torch.nn.Sequential(torch.nn.Linear(d_in, d_out), torch.nn.Dropout(0.5))


@pytest.mark.parametrize("head", ["linear", head_with_dropout])
def test_random_numbers_of_one_thread_are_not_those_of_another(head, rng):
    X, Y = rng.standard_normal((2, 40, 6))

    def fit(seed):
        return SOTAlign(CCATeacher(reg=0.1), head=head, max_iter=10, random_state=seed).fit(X[:30], Y[:30]).transform(X)

    before = torch.get_rng_state()
    expected = [fit(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fit, range(4)))
    for actual, desired in zip(found, expected, strict=True):
        np.testing.assert_array_equal(actual, desired)
    assert torch.equal(torch.get_rng_state(), before)


def test_heads_of_a_factory_are_drawn_one_thread_at_a_time():
    def weights(seed):
        return build_head(head_with_dropout, 5, 3, seed)[0].weight.detach()

    expected = [weights(seed) for seed in range(50)]
    with ThreadPoolExecutor(4) as pool:
        for actual, desired in zip(pool.map(weights, range(50)), expected, strict=True):
            assert torch.equal(actual, desired)
