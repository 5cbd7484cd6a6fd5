"""Laws of the divergences by name. Knows torch, knows nothing of estimators."""

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose
from torch.nn.functional import normalize

from skalign._core import divergences
from skalign._core.divergences import DIVERGENCES, Divergence
from skalign._core.klot import klot
from skalign._core.losses import cka, info_nce


@pytest.fixture
def rows(rng):
    """Unit rows of student and teacher, 7 x 11."""
    sizes = [(7, 3), (11, 3), (7, 5), (11, 5)]
    return [normalize(torch.from_numpy(rng.normal(size=size)), dim=1) for size in sizes]


def divergence(name, tol=1e-9, tol_teacher=1e-9, max_iter=1000):
    return Divergence(name, 0.05, 0.02, tol=tol, tol_teacher=tol_teacher, max_iter=max_iter)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_each_name_computes_its_loss_on_the_affinities(rows, name):
    F, G, F_teacher, G_teacher = rows
    K, K_teacher = F @ G.T, F_teacher @ G_teacher.T
    expected = {
        "klot": lambda: klot(K, K_teacher, 0.05, 0.02, tol=1e-9)[0],
        "info_nce": lambda: info_nce(K, K_teacher, 0.05, 0.02),
        "cka": lambda: cka(*rows),
    }
    assert_allclose(divergence(name)(*rows), expected[name](), **LAW[np.float64])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_reaches_the_student_only(rows, name):
    for Z in rows:
        Z.requires_grad_()
    divergence(name)(*rows).backward()
    assert [Z.grad is not None for Z in rows] == [True, True, False, False]


def test_klot_remembers_the_worst_errors(rows):
    F, G, F_teacher, G_teacher = rows
    judge = divergence("klot", tol=1e-6, tol_teacher=1e-6, max_iter=60)
    _, student, teacher = klot(F @ G.T, F_teacher @ G_teacher.T, 0.05, 0.02, tol=1e-6, max_iter=60)
    judge(*rows)
    assert judge.worst_error == {"student": student.error, "teacher": teacher.error}
    assert judge.n_unconverged == {"student": 0, "teacher": 0}
    judge.options["max_iter"] = 5
    judge(*rows)
    worst = dict(judge.worst_error)
    assert worst["teacher"] > 1e-3
    assert judge.n_unconverged == {"student": 1, "teacher": 1}
    judge.options["max_iter"] = 60
    judge(*rows)
    assert judge.worst_error == worst
    assert judge.n_unconverged == {"student": 1, "teacher": 1}


def test_each_plan_has_its_own_tolerance(rows):
    loose = divergence("klot", tol=1e-9, tol_teacher=0.3)
    loose(*rows)
    assert loose.worst_error["student"] <= 1e-9
    assert 1e-9 < loose.worst_error["teacher"] <= 0.3


def test_large_batches_never_form_their_affinities(rows, monkeypatch):
    F, G = rows[0].requires_grad_(), rows[1].requires_grad_()
    dense = divergence("klot")(*rows)
    expected = torch.autograd.grad(dense, (F, G))
    monkeypatch.setattr(divergences, "_DENSE_ENTRIES", 7 * 11 - 1)
    monkeypatch.setattr(divergences, "klot", None)
    judge = divergence("klot")
    streamed = judge(*rows)
    assert_allclose(streamed.detach(), dense.detach(), **LAW[np.float64])
    for found, wanted in zip(torch.autograd.grad(streamed, (F, G)), expected, strict=True):
        assert_allclose(found, wanted, **LAW[np.float64])
    assert judge.worst_error["teacher"] > 0


def test_streaming_says_whether_the_next_call_needs_less_memory(rows, monkeypatch):
    judge = divergence("klot")
    assert not judge.stream()  # nothing was held as yet
    dense = judge(*rows)
    assert judge.stream()
    monkeypatch.setattr(divergences, "klot", None)
    assert_allclose(judge(*rows), dense, **LAW[np.float64])
    assert not judge.stream()


def test_rows_that_come_again_start_where_they_ended(rows, monkeypatch):
    n_iter, judge = [], divergence("klot", tol=1e-6, tol_teacher=1e-6)

    def spy(*args, **kwargs):
        results = klot(*args, **kwargs)
        n_iter.append(results[2].n_iter)
        return results

    monkeypatch.setattr(divergences, "klot", spy)
    first = judge(*rows)
    for same_rows in (True, False):
        assert_allclose(judge(*rows, same_rows), first, rtol=1e-5)
    assert n_iter[1] == 1
    assert n_iter[2] == n_iter[0] > 1
