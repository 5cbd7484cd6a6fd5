"""The training loop of the alignment heads (SOTAlign, algorithm 1). Knows torch, knows nothing of estimators."""

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn.functional import normalize
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, SequentialLR

from .affinity import full_precision
from .distributed import ALONE
from .divergences import Divergence
from .heads import random_numbers
from .lion import Lion
from .objectives import Batch
from .ranks import recalls
from .reading import StreamedRows, StreamedSampler

OPTIMIZERS = {"adamw": torch.optim.AdamW, "lion": Lion}
_NO_MEMORY = "DefaultCPUAllocator"  # what torch's word begins with on the CPU, where it has no exception of its own


@dataclass(frozen=True)
class TrainingViews:
    """Tensors the heads are trained on, all on one device.

    A, B : (p, d_x), (p, d_y) pairs, row by row; `pairs` (p, 2) says which samples the rows are.
    X, Y : (u_x, d_x), (u_y, d_y) unpaired rows; F_teacher, G_teacher : (u_x, k), (u_y, k) unit rows of the teacher. Where the
    rows do not fit into memory, X and Y are `StreamedRows`, which bring their teacher along. Of rows that other processes hold
    some of, `shares` has a `Share` of X and one of Y.
    held_out : None, or rows of X and of Y never trained on and the pairs (q, 2) among them.
    """

    A: torch.Tensor
    B: torch.Tensor
    pairs: torch.Tensor
    X: torch.Tensor | StreamedRows | None = None
    Y: torch.Tensor | StreamedRows | None = None
    F_teacher: torch.Tensor | None = None
    G_teacher: torch.Tensor | None = None
    shares: tuple | None = None
    held_out: tuple | None = None


class Share(NamedTuple):
    """Which of `n_rows` rows are there: those in the slice `own`."""

    own: slice
    n_rows: int


@dataclass
class TrainingRecord:
    """What happened: curves per step (validation per look), how the training ended, and the states of the modules to keep.

    `kept` is the best state on held-out pairs if there are any, else that after the last complete step.
    """

    kept: list
    curves: dict = field(default_factory=dict)
    n_iter: int = 0
    best_iter: int | None = None
    ended: str = "completed"  # or "stopped early", "interrupted", "diverged", "out of memory"

    def state_dict(self):
        """All of it, as torch's modules give theirs."""
        return dict(vars(self))

    def load_state_dict(self, state):
        """Be what gave this `state_dict`."""
        vars(self).update(state)


def train_heads(
    head_x,
    head_y,
    views,
    objective,
    *,
    batch_size: int,
    batch_size_unpaired: tuple[int, int],
    dtype: torch.dtype,
    optimizer: type,
    learning_rate: float,
    weight_decay: float,
    warmup: float | None,
    max_iter: int,
    n_iter_no_change: int,
    validation_interval: int,
    seed: int,
    announce: Callable,
    report: Callable,
    checkpoint=None,
    parts=None,
    group=ALONE,
) -> TrainingRecord:
    """Minimise an objective over both heads, in place.

    See `descend`, of which this is the form for two heads. They, and nothing else, run under autocast to `dtype`. `parts` are
    those, by name, that a checkpoint keeps beyond what is seen here.
    """
    buffers = [*head_x.buffers(), *head_y.buffers()]
    device, reading = views.A.device, contextlib.ExitStack()

    def embedder(head):
        def embed_rows(rows):
            # without a cache, which would keep the weights of the first step: it is emptied where the outermost autocast
            # ends, and `undisturbed` is around us
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
                Z = head(rows)
            return unit_rows(Z.float())

        return embed_rows

    embed_x, embed_y = embedder(head_x), embedder(head_y)

    def prepare():
        generator = torch.Generator().manual_seed(seed)
        parameters = [*head_x.parameters(), *head_y.parameters(), *objective.to(device).parameters()]
        draw, samplers = _batches(views, objective.takes_unpaired, batch_size, batch_size_unpaired, generator, reading)
        seen = {"head_x": head_x, "head_y": head_y, "objective": objective, **samplers}
        if views.held_out is not None:
            head_x.train(), head_y.train()  # as a look leaves them, so that a training that is resumed has them alike
        group.align([parameter.data for parameter in parameters] + buffers)
        return parameters, lambda: functools.partial(objective, embed_x, embed_y, draw()), seen | (parts or {})

    def save_memory():
        return any(part.stream() for part in objective.modules() if isinstance(part, Divergence))

    look = None
    if views.held_out is not None:
        look = functools.partial(_held_out_recall, head_x, head_y, views.held_out, group)
    with reading:
        return descend(
            prepare,
            (head_x, head_y),
            objective.terms,
            look=look,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            max_iter=max_iter,
            n_iter_no_change=n_iter_no_change,
            validation_interval=validation_interval,
            announce=announce,
            report=report,
            after_step=lambda: group.align(buffers),  # of which each process had a say of its own
            save_memory=save_memory,
            checkpoint=checkpoint,
            group=group,
        )


def descend(
    prepare,
    modules,
    names,
    *,
    look,
    optimizer,
    learning_rate,
    weight_decay,
    warmup,
    max_iter,
    n_iter_no_change,
    validation_interval,
    report,
    announce=lambda: None,
    clip=None,
    after_step=lambda: None,
    save_memory=lambda: False,
    checkpoint=None,
    group=ALONE,
) -> TrainingRecord:
    """Take steps down a loss; whatever ends them, `modules` are left in the state that the record keeps.

    ``prepare()`` returns the parameters to train, a function that draws the next batch and returns one that computes its
    terms, among them "loss", and by name all parts whose state a step changes: modules, samplers, generators. ``look()`` is
    the score of `modules` on held-out data, or None; `clip` bounds the norm of the gradient; and ``after_step()`` is called
    when the parameters have moved. ``announce()`` is called before every step and ``report(record)`` after it; if that
    returns something true, training stops early. Where memory does not suffice for a step, ``save_memory()`` may see to it
    that steps need less from now on, and if it returns True the step is tried again; else that ends the training, and is an
    error if there is no step to keep. A `checkpoint` gives the parts the state of a training that was killed
    (``restore(parts)``, False if there is none) and is offered theirs after every step. The processes of a `group` go down
    the mean of their gradients, step by step; where memory does not suffice for one of them, that is an error.
    """
    record = TrainingRecord(_snapshot(*modules), {name: [] for name in names})
    try:
        parameters, next_step, parts = prepare()
        changeable = list(parts.values())
        stepper = optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)
        schedule = _warm_cosine(stepper, warmup, max_iter)
        parts |= {"optimizer": stepper, "schedule": schedule, "record": record}
        resumed = checkpoint is not None and checkpoint.restore(parts)
        if look is not None and not resumed:
            record.curves["validation"], record.best_iter = [look()], 0
        while record.ended == "completed" and record.n_iter < max_iter:
            announce()
            terms = _differentiated(next_step(), stepper, changeable, save_memory)
            terms = group.averaged(parameters, terms)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            stepper.step()
            schedule.step()
            # Lion steps by signs, which hide a NaN, so the weights alone would not tell
            finite = _all_finite(terms["loss"], *parameters, *(p.grad for p in parameters if p.grad is not None))
            # all that is read of a step is read at once: a GPU waits for that
            *values, is_finite = torch.stack([*terms.values(), finite]).tolist()
            if not is_finite:
                record.ended = "diverged"
                break
            after_step()
            if look is None:
                record.kept = _snapshot(*modules)
            record.n_iter += 1
            for name, value in zip(terms, values, strict=True):
                record.curves[name].append(value)
            if look is not None and _time_to_look(record.n_iter, validation_interval, max_iter):
                score, best = look(), max(record.curves["validation"])
                record.curves["validation"].append(score)
                if score > best:
                    record.kept, record.best_iter = _snapshot(*modules), record.n_iter
                elif record.n_iter - record.best_iter >= n_iter_no_change:
                    record.ended = "stopped early"
            is_last = record.ended != "completed" or record.n_iter == max_iter
            if report(record):
                record.ended = "stopped early"
            elif checkpoint is not None:  # not where a listener stops: who resumes may listen to another
                checkpoint.step(parts, record.n_iter, is_last)
    except KeyboardInterrupt:
        if group.size > 1:  # the others may be at another step
            raise
        record.ended = "interrupted"
    except (RuntimeError, MemoryError) as error:
        if group.size > 1 or not _is_about_memory(error):
            raise
        if record.n_iter == 0:
            error.add_note("Not one step of the training fits into memory: lower its batch sizes.")
            raise
        record.ended = "out of memory"
    for module, state in zip(modules, record.kept, strict=True):
        module.load_state_dict(state)
    return record


def unit_rows(Z):
    """Rows at unit length; zero rows stay zero."""
    return normalize(Z, dim=1)


def embed(head, Z, device, batch_size=65_536):
    """Unit rows of a head's output on the CPU, by batches on the device, without gradients and in evaluation mode."""
    head.eval()
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return torch.cat([unit_rows(head(batch.to(device))).cpu() for batch in Z.split(batch_size)])


@contextlib.contextmanager
def undisturbed(device, seed):
    """Gradients on, full precision, random numbers of our own; what the caller has set of these is put back.

    The seed is for what draws from torch's global state, and None if nothing does: then threads need not wait in turn.
    Yields the generators it seeded, by name.
    """
    devices = [device] if device.type == "cuda" else []
    numbers = contextlib.nullcontext({}) if seed is None else random_numbers(seed, devices)
    with numbers as generators, torch.enable_grad(), full_precision(device):
        yield generators


class _Sampler:
    """Draws batches of row numbers without replacement, epoch after epoch; a batch as large as the pool is all of it.

    Where only a `Share` of the rows is there, what is returned are their numbers among these.
    """

    def __init__(self, n_rows, batch_size, generator, device, share=None):
        self.share = share
        self.n_rows = n_rows if share is None else share.n_rows
        self.batch_size = min(batch_size, self.n_rows)
        self.generator, self.device = generator, device
        self.order = torch.empty(0, dtype=torch.long)

    def state_dict(self):
        """The rows still to come in this epoch."""
        return {"order": self.order.clone()}  # alone, for it is a view of the whole epoch

    def load_state_dict(self, state):
        """Be what gave this `state_dict`."""
        self.order = state["order"]

    @property
    def takes_all(self):
        return self.batch_size == self.n_rows

    def __call__(self):
        if self.takes_all:
            return slice(None)
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(self.n_rows, generator=self.generator)
        batch, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        if self.share is not None:
            start, stop = self.share.own.start, self.share.own.stop
            batch = batch[(start <= batch) & (batch < stop)] - start
        return batch.to(self.device)


def _batches(views, takes_unpaired, batch_size, batch_size_unpaired, generator, reading):
    """A function that draws the next `Batch`, and by name all whose state it depends on.

    The exit stack `reading` ends what is read ahead.
    """
    device = views.A.device
    for_objective = torch.Generator().manual_seed(generator.initial_seed())
    draw_pairs, draw_unpaired = _Sampler(len(views.A), batch_size, generator, device), dict
    parts = {"generator": generator, "for_objective": for_objective, "draw_pairs": draw_pairs}
    if takes_unpaired:
        draw_unpaired, samplers = _draw_unpaired(views, batch_size_unpaired, generator, reading)
        parts |= samplers

    def draw():
        at = draw_pairs()
        unpaired = draw_unpaired()
        matches = _matches(views.pairs[at])
        return Batch(A=views.A[at], B=views.B[at], matches=matches, at=at, generator=for_objective, **unpaired)

    return draw, parts


def _draw_unpaired(views, batch_sizes, generator, reading):
    """A function that draws the unpaired rows of a `Batch`, and by name what it draws them with."""
    if isinstance(views.X, StreamedRows):
        sampler = StreamedSampler(views.X, views.Y, batch_sizes, generator, views.A.device, reading)
        return sampler, {"draw_unpaired": sampler}
    shares = views.shares or (None, None)
    draw_x, draw_y = (
        _Sampler(len(rows), size, generator, views.A.device, share)
        for rows, size, share in zip((views.X, views.Y), batch_sizes, shares, strict=True)
    )

    def draw():
        i, j = draw_x(), draw_y()
        unpaired = {"X": views.X[i], "Y": views.Y[j], "same_rows": draw_x.takes_all and draw_y.takes_all}
        if views.F_teacher is not None:
            unpaired |= {"F_teacher": views.F_teacher[i], "G_teacher": views.G_teacher[j]}
        return unpaired

    return draw, {"draw_x": draw_x, "draw_y": draw_y}


def _matches(pairs):
    """Which row of one view is a known match of which row of the other, within a batch of pairs, (n, n)."""
    same_x = pairs[:, 0, None] == pairs[:, 0]
    same_y = pairs[:, 1, None] == pairs[:, 1]
    return same_x | same_y


def _warm_cosine(stepper, warmup, max_iter):
    """Linear warm-up over a fraction of the steps, then a cosine down to 0; one rate throughout if the fraction is None."""
    if warmup is None:
        return ConstantLR(stepper, 1.0)
    n_warm = min(math.ceil(warmup * max_iter), max_iter - 1)
    cosine = CosineAnnealingLR(stepper, max(max_iter - n_warm, 1))
    if n_warm == 0:
        return cosine
    return SequentialLR(stepper, [LinearLR(stepper, 1 / (n_warm + 1), 1.0, n_warm), cosine], [n_warm])


def _differentiated(compute, stepper, parts, save_memory):
    """The terms that ``compute()`` gives, without their graph; the gradients of "loss" are left in the parameters.

    If memory does not suffice and ``save_memory()`` returns True, all is done again from what it was.
    """

    def differentiate():
        stepper.zero_grad()
        terms = compute()
        terms["loss"].backward()
        return {name: value.detach() for name, value in terms.items()}

    take_back = _remembered(parts)
    try:
        return differentiate()
    except (RuntimeError, MemoryError) as error:
        take_back()
        if not (_is_about_memory(error) and save_memory()):
            raise
    return differentiate()  # out here, where the error has gone, whose frames hold the tensors that were too many


def _remembered(parts):
    """A function that undoes what computing a loss may change: buffers and extra state of modules, states of generators."""
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    generators = [part for part in parts if isinstance(part, torch.Generator)]
    states = [copy.deepcopy(_without_weights(module)) for module in modules]
    numbers = [generator.get_state() for generator in generators]

    def take_back():
        for module, state in zip(modules, states, strict=True):
            module.load_state_dict(state, strict=False)
        for generator, state in zip(generators, numbers, strict=True):
            generator.set_state(state)

    return take_back


def _without_weights(module):
    weights = {name for name, _ in module.named_parameters()}
    return {name: value for name, value in module.state_dict().items() if name not in weights}


def _is_about_memory(error):
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY in str(error)


def _all_finite(*tensors):
    return torch.stack([torch.isfinite(Z).all() for Z in tensors]).all()


def _snapshot(*modules):
    return [{name: tensor.detach().clone() for name, tensor in module.state_dict().items()} for module in modules]


def _time_to_look(n_iter, interval, max_iter):
    return n_iter % interval == 0 or n_iter == max_iter


def _held_out_recall(head_x, head_y, held_out, group):
    """Mean of the six recalls on held-out pairs, as the first process of a group finds it."""
    X, Y, pairs = held_out
    F, G = embed(head_x, X, X.device), embed(head_y, Y, Y.device)
    head_x.train(), head_y.train()
    return group.first(float(recalls(F.numpy(), G.numpy(), pairs).mean()))
