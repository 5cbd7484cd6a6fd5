"""Laws of the training loop. Knows torch, knows nothing of estimators."""

import contextlib
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn.functional import normalize

from skalign._core import divergences, training
from skalign._core.divergences import Divergence
from skalign._core.heads import build_head
from skalign._core.lion import Lion
from skalign._core.losses import siglip
from skalign._core.objectives import PairsAndTeacher
from skalign._core.training import TrainingViews, embed, train_heads, unit_rows

CPU = torch.device("cpu")


@pytest.fixture
def views(rng):
    """24 pairs, 40 + 50 unpaired rows of a latent seen through two maps, 7 and 11 wide; the teacher is the latent."""
    maps = rng.normal(size=(3, 7)), rng.normal(size=(3, 11))

    def seen(latent, k):
        return torch.from_numpy(latent @ maps[k] + 0.1 * rng.normal(size=(len(latent), maps[k].shape[1]))).float()

    paired, x, y = (rng.normal(size=(n, 3)) for n in (24, 40, 50))
    return TrainingViews(
        A=seen(paired, 0),
        B=seen(paired, 1),
        pairs=torch.arange(24)[:, None].expand(-1, 2),
        X=seen(x, 0),
        Y=seen(y, 1),
        F_teacher=normalize(torch.from_numpy(x).float(), dim=1),
        G_teacher=normalize(torch.from_numpy(y).float(), dim=1),
    )


@pytest.fixture
def held_out(rng):
    """Rows and pairs without any relation, so that recall goes up and down."""
    X, Y = (torch.from_numpy(rng.normal(size=size)).float() for size in ((15, 7), (12, 11)))
    return X, Y, np.column_stack([np.arange(10), rng.permutation(12)[:10]])


def with_held_out(views, held_out):
    return TrainingViews(**vars(views) | {"held_out": held_out})


def heads(seed=0):
    return build_head("linear", 7, 4, seed), build_head("layernorm", 11, 4, seed + 1)


def klot():
    return Divergence("klot", 0.1, 0.1, tol=1e-4, tol_teacher=1e-4, max_iter=100)


def trained(views, *, pair=None, alpha=0.0, divergence=None, **changes):
    """Heads trained on the views, with the record and their state after every step (state 0 is the start)."""
    options = {
        "batch_size": 9,
        "batch_size_unpaired": (17, 19),
        "dtype": torch.float32,
        "optimizer": torch.optim.AdamW,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "warmup": 0.1,
        "max_iter": 20,
        "n_iter_no_change": 10**6,
        "validation_interval": 1,
        "seed": 0,
        "announce": lambda: None,
        "report": lambda record: None,
    } | changes
    pair = pair or heads()
    states = [state(pair)]

    def report(record):
        states.append(state(pair))
        return options["report"](record)

    record = train_heads(*pair, views, PairsAndTeacher(alpha, divergence), **options | {"report": report})
    return SimpleNamespace(heads=pair, record=record, states=states)


def state(pair):
    return [Z.detach().clone() for head in pair for Z in head.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def interrupt_at(step):
    def report(record):
        if record.n_iter == step:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, Lion])
def test_pairs_find_each_other(views, optimizer):
    run = trained(views, optimizer=optimizer, max_iter=150, batch_size=24)
    loss = run.record.curves["loss"]
    assert loss[-1] < 0.3 * loss[0]
    K = embed(run.heads[0], views.A, CPU) @ embed(run.heads[1], views.B, CPU).T
    n_closer = (K.diagonal()[:, None] < K).sum(dim=1)
    assert float(n_closer.float().mean()) < 1.5  # 11.5 by chance


def test_divergence_brings_unpaired_rows_to_the_teacher(views):
    def gap(run):
        F, G = embed(run.heads[0], views.X, CPU), embed(run.heads[1], views.Y, CPU)
        return float(klot()(F, G, views.F_teacher, views.G_teacher))

    few = TrainingViews(**vars(views) | {"A": views.A[:2], "B": views.B[:2], "pairs": views.pairs[:2]})
    options = {"max_iter": 100, "learning_rate": 0.03}
    guided = trained(few, alpha=1.0, divergence=klot(), **options)
    assert gap(guided) < 0.5 * gap(trained(few, **options))
    curve = guided.record.curves["divergence"]
    assert np.mean(curve[-10:]) < 0.5 * np.mean(curve[:5])


def test_first_loss_is_siglip_at_twenty_and_minus_ten_plus_alpha_times_divergence(views):
    pair = heads()
    with torch.no_grad():
        K = unit_rows(pair[0](views.A)) @ unit_rows(pair[1](views.B)).T
        F, G = unit_rows(pair[0](views.X)), unit_rows(pair[1](views.Y))
        supervised = siglip(K, torch.eye(24), 20.0, -10.0)
        regulariser = klot()(F, G, views.F_teacher, views.G_teacher)
    curves = trained(
        views, pair=pair, alpha=0.7, divergence=klot(), batch_size=24, batch_size_unpaired=(40, 50), max_iter=1
    ).record.curves
    assert_allclose(curves["siglip"], supervised, **LAW[np.float32])
    assert_allclose(curves["divergence"], regulariser, **LAW[np.float32])
    assert_allclose(curves["loss"], supervised + 0.7 * regulariser, **LAW[np.float32])


def test_curves_add_up(views):
    run = trained(views, alpha=0.7, divergence=klot())
    curves = {name: np.array(curve) for name, curve in run.record.curves.items()}
    assert run.record.n_iter == 20
    assert run.record.ended == "completed"
    assert run.record.best_iter is None
    assert {len(curve) for curve in curves.values()} == {20}
    assert_allclose(curves["loss"], curves["siglip"] + 0.7 * curves["divergence"], **LAW[np.float32])


def test_without_alpha_unpaired_rows_are_ignored(views):
    def never(*args):
        raise AssertionError("the divergence was called")

    bare = TrainingViews(A=views.A, B=views.B, pairs=views.pairs)
    with_rows, without = trained(views, divergence=never), trained(bare)
    assert same(with_rows.states[-1], without.states[-1])
    assert with_rows.record.curves == without.record.curves
    assert set(without.record.curves["divergence"]) == {0.0}


def test_scale_and_bias_are_learned(views):
    pair = nn.Identity(), nn.Identity()  # nothing else to learn
    rows = TrainingViews(A=views.A, B=views.A, pairs=views.pairs)
    loss = trained(rows, pair=pair, batch_size=24, max_iter=50, learning_rate=0.1).record.curves["loss"]
    assert loss[-1] < 0.95 * loss[0]


def sampler(n_rows, batch_size, seed=0, share=None):
    return training._Sampler(n_rows, batch_size, torch.Generator().manual_seed(seed), torch.device("cpu"), share)


def test_every_epoch_draws_every_row_once():
    draw = sampler(12, 4)
    epochs = [torch.cat([draw() for _ in range(3)]) for _ in range(3)]
    for epoch in epochs:
        assert_array_equal(epoch.sort().values, range(12))
    assert not torch.equal(epochs[0], epochs[1])


def test_batches_of_an_epoch_share_no_row():
    draw, seen = sampler(11, 4), set()
    for _ in range(40):  # the three rows left over are dropped, others each epoch
        first, second = draw(), draw()
        assert len(first) == len(second) == 4
        assert len({*first.tolist(), *second.tolist()}) == 8
        seen |= {*first.tolist()}
    assert seen == set(range(11))


def test_shares_of_a_batch_are_the_batch():
    shares = [slice(0, 0), slice(0, 5), slice(5, 11)]
    draw, of_shares = (
        sampler(11, 4),
        [sampler(own.stop - own.start, 4, share=training.Share(own, 11)) for own in shares],
    )
    for _ in range(10):
        drawn = [at + own.start for at, own in zip((draw() for draw in of_shares), shares, strict=True)]
        assert_array_equal(torch.cat(drawn).sort().values, draw().sort().values)


@pytest.mark.parametrize("batch_size", [12, 13, 10**6])
def test_batch_as_large_as_the_pool_is_all_of_it(batch_size):
    draw = sampler(12, batch_size)
    assert draw() == slice(None)
    assert draw() == slice(None)


def test_seed_decides_the_batches():
    first, again, other = (torch.stack([draw() for _ in range(5)]) for draw in (sampler(12, 4, s) for s in (0, 0, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("sizes", "all_rows"), [((40, 50), True), ((40, 19), False), ((17, 50), False)])
def test_a_batch_holds_the_rows_it_drew(views, sizes, all_rows):
    draw = training._batches(views, True, 9, sizes, torch.Generator().manual_seed(0), contextlib.ExitStack())[0]
    for _ in range(3):
        batch = draw()
        assert len(batch.at) == len(batch.A) == 9
        assert torch.equal(batch.A, views.A[batch.at])
        assert torch.equal(batch.B, views.B[batch.at])
        assert_array_equal(batch.matches, np.eye(9))
        for name, teacher, size in (("X", "F_teacher", sizes[0]), ("Y", "G_teacher", sizes[1])):
            rows, pool = getattr(batch, name), getattr(views, name)
            at = (rows[:, None] == pool).all(dim=2).nonzero()[:, 1]
            assert len(rows) == len(at) == size
            assert torch.equal(getattr(batch, teacher), getattr(views, teacher)[at])
        assert batch.same_rows is all_rows


def test_a_batch_of_pairs_alone_holds_nothing_else(views):
    batch = training._batches(views, False, 9, (17, 19), torch.Generator().manual_seed(0), contextlib.ExitStack())[0]()
    assert (batch.X, batch.Y, batch.F_teacher, batch.G_teacher) == (None, None, None, None)


def test_batches_match_rows_of_one_sample():
    # five captions of two images, and caption 12 written for both
    pairs = torch.tensor([[0, 10], [0, 11], [0, 12], [1, 12], [1, 13]])
    expected = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])
    assert_array_equal(training._matches(pairs), expected)
    assert_array_equal(training._matches(torch.arange(8).reshape(4, 2)), np.eye(4))


def test_matches_of_many_captions_reach_the_loss(views):
    pairs = torch.column_stack([torch.arange(24) // 3, torch.arange(24)])
    many = TrainingViews(**vars(views) | {"pairs": pairs})
    pair = heads()
    with torch.no_grad():
        K = unit_rows(pair[0](views.A)) @ unit_rows(pair[1](views.B)).T
    expected = siglip(K, torch.eye(8).repeat_interleave(3, 0).repeat_interleave(3, 1), 20.0, -10.0)
    found = trained(many, pair=pair, batch_size=24, max_iter=1).record.curves["siglip"]
    assert_allclose(found, expected, **LAW[np.float32])


def spy(rates, interrupt_at=None):
    """An optimizer that notes its learning rates, and may be interrupted after it has moved the weights."""

    class Spy(torch.optim.SGD):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            super().step()
            if len(rates) == interrupt_at:
                raise KeyboardInterrupt

    return Spy


@pytest.mark.parametrize(("warmup", "n_warm"), [(0.0, 0), (0.1, 2), (0.5, 10), (0.11, 3), (1.0, 19)])
def test_learning_rate_warms_up_then_follows_a_cosine_to_zero(views, warmup, n_warm):
    rates = []
    trained(views, optimizer=spy(rates), warmup=warmup, learning_rate=0.3)
    steps = np.arange(20)
    rising = (steps + 1) / (n_warm + 1)
    falling = (1 + np.cos(np.pi * (steps - n_warm) / (20 - n_warm))) / 2
    assert_allclose(rates, 0.3 * np.where(steps < n_warm, rising, falling), **LAW[np.float64])


@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_one_step_is_a_training_too(views, warmup):
    run = trained(views, warmup=warmup, max_iter=1)
    assert run.record.n_iter == 1
    assert not same(run.states[0], run.states[1])


def test_interruption_keeps_the_last_complete_step(views):
    run = trained(views, report=interrupt_at(7))
    assert run.record.ended == "interrupted"
    assert run.record.n_iter == 7
    assert len(run.record.curves["loss"]) == 7
    assert same(state(run.heads), run.states[7])
    assert not same(run.states[6], run.states[7])


def test_interruption_in_the_middle_of_a_step_undoes_it(views):
    run = trained(views, optimizer=spy([], interrupt_at=8))
    assert run.record.ended == "interrupted"
    assert run.record.n_iter == len(run.states) - 1 == 7
    assert same(state(run.heads), run.states[7])


def test_interruption_before_the_first_step_keeps_the_start(views):
    run = trained(views, optimizer=spy([], interrupt_at=1))
    assert run.record.ended == "interrupted"
    assert run.record.n_iter == 0
    assert same(state(run.heads), run.states[0])


def test_every_step_is_announced_then_reported_until_a_report_is_true(views):
    told = []

    def report(record):
        told.append(record.n_iter)
        return record.n_iter == 3

    run = trained(views, announce=lambda: told.append("step"), report=report)
    assert told == ["step", 1, "step", 2, "step", 3]
    assert run.record.ended == "stopped early"
    assert same(state(run.heads), run.states[3])
    assert same([Z for kept in run.record.kept for Z in kept.values()], run.states[3])


def test_other_errors_pass_through(views):
    def report(record):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trained(views, report=report)


def test_best_state_on_held_out_pairs_is_restored(views, held_out):
    run = trained(with_held_out(views, held_out), learning_rate=0.3, warmup=0.0)
    recalls = run.record.curves["validation"]
    assert len(recalls) == 21  # the start, then every step
    assert run.record.best_iter == np.argmax(recalls) < 20  # the first of the best
    assert max(recalls) > min(recalls)
    assert run.record.ended == "completed"
    assert same(state(run.heads), run.states[run.record.best_iter])
    assert not same(run.states[run.record.best_iter], run.states[-1])


def test_recall_on_held_out_pairs_is_that_of_the_state(views, held_out):
    X, Y, pairs = held_out
    run = trained(with_held_out(views, held_out))
    best = float(
        training.recalls(embed(run.heads[0], X, CPU).numpy(), embed(run.heads[1], Y, CPU).numpy(), pairs).mean()
    )
    assert_allclose(run.record.curves["validation"][run.record.best_iter], best)


def test_interruption_restores_the_best_state_too(views, held_out):
    run = trained(with_held_out(views, held_out), learning_rate=0.3, warmup=0.0, report=interrupt_at(18))
    assert run.record.ended == "interrupted"
    assert run.record.n_iter == 18
    assert run.record.best_iter == np.argmax(run.record.curves["validation"]) < 18
    assert same(state(run.heads), run.states[run.record.best_iter])


def test_looking_does_not_change_the_training(views, held_out):
    assert same(trained(views).states[-1], trained(with_held_out(views, held_out)).states[-1])


@pytest.mark.parametrize(
    ("interval", "looks"), [(1, 21), (3, 8), (7, 4), (50, 2)]
)  # the start and the last step are seen
def test_validation_looks_at_its_interval(views, held_out, interval, looks):
    run = trained(with_held_out(views, held_out), validation_interval=interval)
    assert len(run.record.curves["validation"]) == looks


@pytest.mark.parametrize(("interval", "patience", "end"), [(1, 5, 5), (3, 5, 6), (3, 6, 6), (3, 7, 9), (1, 1, 1)])
def test_training_stops_after_the_patience(views, held_out, interval, patience, end):
    run = trained(
        with_held_out(views, held_out),
        learning_rate=0.0,  # recall stands still, so the start stays the best
        validation_interval=interval,
        n_iter_no_change=patience,
    )
    assert run.record.ended == "stopped early"
    assert run.record.best_iter == 0
    assert run.record.n_iter == end
    assert len(run.states) - 1 == end  # the last step is reported too


def test_heads_stay_in_training_mode(views, held_out):
    pair = heads()

    def report(record):
        assert all(head.training for head in pair)

    trained(with_held_out(views, held_out), pair=pair, report=report)


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"),
    [(torch.optim.AdamW, 1e30), (torch.optim.SGD, 1e30), (torch.optim.AdamW, math.inf), (Lion, math.inf)],
)
def test_divergence_leaves_finite_weights(views, optimizer, learning_rate):
    run = trained(views, optimizer=optimizer, learning_rate=learning_rate, warmup=0.0)
    assert run.record.ended == "diverged"
    assert run.record.n_iter == len(run.states) - 1 < 20
    assert all(torch.isfinite(Z).all() for Z in state(run.heads))
    assert same(state(run.heads), run.states[run.record.n_iter])
    assert len(run.record.curves["loss"]) == run.record.n_iter


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, Lion])  # the signs of Lion hide a NaN
def test_nan_ends_the_training_whatever_the_optimizer(views, optimizer):
    calls = []

    def sick(F, G, *teacher):
        calls.append(1)
        return (F.sum() - G.sum()) * (math.nan if len(calls) == 8 else 1)

    run = trained(views, alpha=1.0, divergence=sick, optimizer=optimizer)
    assert run.record.ended == "diverged"
    assert run.record.n_iter == 7
    assert same(state(run.heads), run.states[7])


def test_divergence_returns_to_the_best_state(views, held_out):
    steps = []

    class Exploding(torch.optim.SGD):
        def step(self):
            super().step()
            steps.append(1)
            if len(steps) == 15:
                self.param_groups[0]["params"][0].data[0, 0] = math.nan

    run = trained(with_held_out(views, held_out), optimizer=Exploding, learning_rate=0.3)
    assert run.record.ended == "diverged"
    assert run.record.n_iter == 14
    assert same(state(run.heads), run.states[run.record.best_iter])


def test_seed_decides_everything(views):
    first, again, other = (trained(views, alpha=1.0, divergence=klot(), seed=seed) for seed in (3, 3, 4))
    assert same(first.states[-1], again.states[-1])
    assert first.record.curves == again.record.curves
    assert not same(first.states[-1], other.states[-1])


def test_global_random_state_stays(views, held_out):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]
    trained(with_held_out(views, held_out), alpha=1.0, divergence=klot())
    assert torch.equal(torch.get_rng_state(), before)
    assert_array_equal(np.random.get_state()[1], numpy_before)


def test_given_views_are_left_as_they_were(views):
    before = {name: Z.clone() for name, Z in vars(views).items() if Z is not None}
    trained(views, alpha=1.0, divergence=klot())
    for name, Z in before.items():
        assert torch.equal(getattr(views, name), Z)


# the type the heads compute in -------------------------------------------------------------------------------------


def head_that_tells(told, d_in):
    class Head(nn.Linear):
        def forward(self, rows):
            Z = super().forward(rows)
            told.append((self.training, rows.dtype, Z.dtype))
            return Z

    return Head(d_in, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_alone_compute_in_the_type_asked_for(views, held_out, dtype):
    told, seen = [], []

    class Spy(Divergence):
        def forward(self, *rows):
            seen.extend(Z.dtype for Z in rows[:4])
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(*rows)

    pair = head_that_tells(told, 7), head_that_tells(told, 11)
    divergence = Spy("klot", 0.1, 0.1, tol=1e-4, tol_teacher=1e-4, max_iter=100)
    run = trained(with_held_out(views, held_out), pair=pair, alpha=1.0, divergence=divergence, dtype=dtype, max_iter=3)
    assert {Z for training, _, Z in told if training} == {dtype}
    assert {Z for training, _, Z in told if not training} == {torch.float32}  # a look at the held-out pairs
    assert {rows for _, rows, _ in told} == {torch.float32}
    assert set(seen) == {torch.float32, False}
    assert {Z.dtype for state in run.states for Z in state} == {torch.float32}
    assert {p.grad.dtype for head in pair for p in head.parameters()} == {torch.float32}


def test_bfloat16_is_the_same_within_another_autocast(views):
    """Whose end would empty a cache of the weights, and not before."""
    alone = trained(views, dtype=torch.bfloat16)
    with training.undisturbed(CPU, None):
        within = trained(views, dtype=torch.bfloat16)
    assert same(alone.states[-1], within.states[-1])


def test_bfloat16_learns_what_float32_learns(views):
    settings = {"alpha": 1.0, "max_iter": 60, "batch_size": 24, "learning_rate": 0.03}
    full, half = (
        trained(views, divergence=klot(), dtype=dtype, **settings) for dtype in (torch.float32, torch.bfloat16)
    )
    assert not same(full.states[-1], half.states[-1])
    curves = [run.record.curves["loss"] for run in (full, half)]
    assert_allclose(curves[1], curves[0], rtol=0.05)
    assert curves[1][-1] < 0.8 * curves[1][0]


# memory that does not suffice --------------------------------------------------------------------------------------


class Scarce(Divergence):
    """KLOT that runs out of memory at some calls, from 1 on: before it does anything, after all of it, or going backward."""

    def __init__(self, failing, when="before", error=torch.OutOfMemoryError):
        super().__init__("klot", 0.1, 0.1, tol=1e-4, tol_teacher=1e-4, max_iter=100)
        self.failing, self.when, self.error, self.n_calls, self.seen = failing, when, error, 0, []

    def forward(self, *batch):
        self.n_calls += 1
        fails = self.n_calls in self.failing
        self.seen.append((self.streams, *(Z.detach().clone() for Z in batch[:4])))
        if fails and self.when == "before":
            self._held_matrices = not self.streams
            raise self.error("CUDA out of memory.")
        value = super().forward(*batch)
        if fails and self.when == "after":
            raise self.error("CUDA out of memory.")
        if fails:
            value.register_hook(self._fail)
        return value

    def _fail(self, gradient):
        raise self.error("CUDA out of memory.")


class StreamsFrom(Divergence):
    """KLOT that works from the features from a call on, without anything happening."""

    def __init__(self, call):
        super().__init__("klot", 0.1, 0.1, tol=1e-4, tol_teacher=1e-4, max_iter=100)
        self.call, self.n_calls = call, 0

    def forward(self, *batch):
        self.n_calls += 1
        self.streams = self.n_calls >= self.call
        return super().forward(*batch)


def drawing_head(d_in, seed=0):
    """A head with buffers and with random numbers of torch's."""
    return nn.Sequential(build_head("linear", d_in, 4, seed), nn.BatchNorm1d(4), nn.Dropout(0.2))


def run_in_scarcity(views, divergence, **settings):
    pair = drawing_head(7), drawing_head(11, 1)
    settings = {"optimizer": torch.optim.AdamW, "max_iter": 9} | settings
    with training.undisturbed(CPU, 0) as parts:
        return trained(views, pair=pair, alpha=1.0, divergence=divergence, parts=parts, **settings)


@pytest.mark.parametrize("when", ["before", "after", "backward"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("sizes", [(17, 19), (40, 50)])  # all rows: then a plan starts from the one before
def test_a_step_out_of_memory_is_taken_again_from_the_features_and_nothing_else_differs(views, when, error, sizes):
    scarce = Scarce({4}, when, error)
    run = run_in_scarcity(views, scarce, batch_size_unpaired=sizes)
    expected = run_in_scarcity(views, StreamsFrom(4), batch_size_unpaired=sizes)
    assert run.record.ended == "completed"
    assert [streams for streams, *_ in scarce.seen] == [False] * 4 + [True] * 6
    for first, again in zip(scarce.seen[3][1:], scarce.seen[4][1:], strict=True):
        assert torch.equal(first, again)
    for one, other in zip(run.states, expected.states, strict=True):
        assert same(one, other)
    assert run.record.curves == expected.record.curves


def test_the_worst_errors_do_not_count_a_step_twice(views):
    scarce = Scarce({4}, "backward")
    scarce.options["max_iter"] = 1
    run = run_in_scarcity(views, scarce)
    assert run.record.n_iter == 9
    assert scarce.n_unconverged == {"student": 9, "teacher": 9}


def test_torch_on_the_cpu_says_it_in_words_of_its_own(views):
    def full(message):
        return RuntimeError(
            f"[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: {message}"
        )

    run = run_in_scarcity(views, Scarce({4}, error=full))
    assert run.record.ended == "completed"
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    assert training._is_about_memory(refused.value)
    with pytest.raises(RuntimeError) as refused:
        torch.eye(2) @ torch.eye(3)
    assert not training._is_about_memory(refused.value)


@pytest.mark.parametrize("failing", [{4, 5}, {2, 5}])  # streaming is not enough; it was once, and later is not
def test_where_streaming_is_not_enough_the_last_complete_step_is_kept(views, failing):
    run = run_in_scarcity(views, Scarce(failing))
    assert run.record.ended == "out of memory"
    assert run.record.n_iter == len(run.record.curves["loss"]) == 3
    assert same(state(run.heads), run.states[3])


def test_where_not_one_step_fits_the_error_says_what_to_do(views):
    with pytest.raises(torch.OutOfMemoryError, match="lower its batch sizes"):
        run_in_scarcity(views, Scarce({1, 2}))


@pytest.mark.parametrize("name", ["info_nce", "cka"])
def test_divergences_that_cannot_stream_are_not_tried_again(views, name):
    class Scarce(Divergence):
        n_calls = 0

        def forward(self, *batch):
            self.n_calls += 1
            if self.n_calls == 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(*batch)

    scarce = Scarce(name, 0.1, 0.1, tol=1e-4, tol_teacher=1e-4, max_iter=100)
    run = trained(views, alpha=1.0, divergence=scarce)
    assert (run.record.ended, run.record.n_iter, scarce.n_calls) == ("out of memory", 3, 4)


def test_an_optimizer_out_of_memory_ends_the_training_at_the_last_complete_step(views):
    steps = []

    class Hungry(torch.optim.SGD):
        def step(self):
            super().step()
            steps.append(1)
            if len(steps) == 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    run = run_in_scarcity(views, klot(), optimizer=Hungry)
    assert (run.record.ended, run.record.n_iter) == ("out of memory", 3)
    assert same(state(run.heads), run.states[3])


def test_a_checkpoint_knows_that_memory_did_not_suffice(views):
    scarce, again = Scarce({1}), klot()
    run_in_scarcity(views, scarce, max_iter=1)
    again.set_extra_state(scarce.get_extra_state())
    assert again.streams


def test_matrices_of_a_step_are_gone_before_the_next(views, monkeypatch):
    held = []

    def spy(*args, **kwargs):
        assert not [affinity for affinity in held if affinity() is not None]
        value, student, teacher = original(*args, **kwargs)
        held.extend(weakref.ref(result.affinity) for result in (student, teacher))
        return value, student, teacher

    original = divergences.klot
    monkeypatch.setattr(divergences, "klot", spy)
    assert trained(views, alpha=1.0, divergence=klot(), max_iter=4).record.n_iter == 4
    assert len(held) == 8


def test_weight_decay_shrinks_the_weights(views):
    free, held = (trained(views, weight_decay=decay, max_iter=100) for decay in (0.0, 10.0))
    assert held.states[-1][0].norm() < 0.7 * free.states[-1][0].norm()


def test_unit_rows_keep_zero_rows():
    Z = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert_allclose(unit_rows(Z), [[0.6, 0.8], [0, 0]], **LAW[np.float32])


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_embedding_in_batches_equals_all_at_once(views, batch_size):
    head = nn.Sequential(build_head("linear", 7, 4, seed=0), nn.Dropout(), nn.BatchNorm1d(4)).train()
    found = embed(head, views.X, CPU, batch_size)
    assert not found.requires_grad
    assert_allclose(found, unit_rows(head.eval()(views.X)).detach(), **LAW[np.float32])
    assert_allclose(found.norm(dim=1), 1, **LAW[np.float32])
