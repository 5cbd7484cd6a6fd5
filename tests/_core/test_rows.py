"""Laws of the row-wise preparation. Knows the core, knows nothing of estimators."""

import warnings

import numpy as np
import pytest
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal

from skalign._core.rows import normalize_rows

DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_get_unit_length_and_keep_their_direction(rng, dtype):
    X = rng.normal(size=(7, 11)).astype(dtype)
    lengths = np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    assert_allclose(normalize_rows(X), X / lengths, **LAW[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_and_tiny_rows_are_like_any_other(rng, dtype):
    X = rng.normal(size=(40, 5)).astype(dtype)
    info = np.finfo(dtype)
    exponents = rng.integers(info.minexp // 2 - 40, info.maxexp - 3, size=(40, 1))
    exponents[:2, 0] = info.minexp + 4, info.maxexp - 3  # the squares of most such rows are zero or infinite
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled = normalize_rows(np.ldexp(X, exponents))
    assert_allclose(scaled, normalize_rows(X), **LAW[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_smallest_and_largest_numbers_have_a_direction(dtype):
    small, large = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    X = np.array([[0, small], [-small, 0], [large, 0], [-large, -large]], dtype=dtype)
    assert_allclose(normalize_rows(X), [[0, 1], [-1, 0], [1, 0], [-(0.5**0.5), -(0.5**0.5)]], **LAW[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows_stay_zero_in_silence(rng, dtype):
    X = rng.normal(size=(5, 3)).astype(dtype)
    X[[1, 4]] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit = normalize_rows(X)
    assert_array_equal(unit[[1, 4]], 0)
    assert_allclose(np.linalg.norm(unit[[0, 2, 3]], axis=1), 1, **LAW[dtype])


def test_negative_rows_are_measured_by_their_size():
    assert_allclose(normalize_rows([[-3e200, -4e200], [1e-3, -1e200]]), [[-0.6, -0.8], [0, -1]], atol=1e-15)


def test_normalizing_twice_changes_nothing(rng):
    once = normalize_rows(rng.normal(size=(7, 11)))
    assert_allclose(normalize_rows(once), once, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, *DTYPES])
def test_dtype_is_kept(rng, dtype):
    unit = normalize_rows(rng.normal(size=(7, 3)).astype(dtype))
    assert unit.dtype == dtype
    assert_allclose(np.linalg.norm(unit.astype(np.float64), axis=1), 1, rtol=2 * np.finfo(dtype).eps)


def test_dtype_asked_for_is_that_of_the_arithmetic(rng):
    X = rng.normal(size=(7, 300)).astype(np.float16)
    unit = normalize_rows(X, dtype=np.float64)
    assert unit.dtype == np.float64
    assert_allclose(unit, normalize_rows(X.astype(np.float64)), rtol=1e-15)


def test_integers_and_lists_become_float64():
    for X in ([[3, 4], [0, -2]], np.array([[3, 4], [0, -2]], np.int8)):
        unit = normalize_rows(X)
        assert unit.dtype == np.float64
        assert_allclose(unit, [[0.6, 0.8], [0, -1]])


def test_view_is_left_as_it_was(rng):
    X = rng.normal(size=(7, 3))
    X.flags.writeable = False
    before = X.copy()
    assert not np.shares_memory(normalize_rows(X), X)
    assert_array_equal(X, before)


def test_no_rows_give_no_rows():
    assert normalize_rows(np.empty((0, 3))).shape == (0, 3)
