"""KLOT, the Kullback-Leibler divergence between two transport plans, with its explicit gradient. Knows torch."""

import math

import torch

from .affinity import FactoredAffinity, StoredAffinity, check_features, full_precision, lifted
from .exp2 import FLOOR
from .sinkhorn import check_epsilon, check_problem, solve


def klot(K, K_teacher, epsilon=0.05, epsilon_teacher=0.01, a=None, b=None, **options):
    r""":math:`\mathrm{KL}(\mathrm{OT}_{\varepsilon^*}(K^*) \,\|\, \mathrm{OT}_{\varepsilon}(K))` as a differentiable scalar.

    See :func:`skalign.losses.klot` for the parameters and `_solve_both` for the options. Returns ``(value, student,
    teacher)``, the last two being the `SinkhornResult` of both plans.
    """
    if K.shape != K_teacher.shape:
        raise ValueError(
            f"Both affinities must have one shape, but K has {tuple(K.shape)} and K_teacher {tuple(K_teacher.shape)}."
        )
    K = lifted(K)
    affinities = [StoredAffinity.checked(Z.detach().to(K.dtype)) for Z in (K, K_teacher)]
    a, b = check_problem(affinities[0], epsilon, a, b)
    rows, columns = a > 0, b > 0
    if not (rows.all() & columns.all()):
        K, a, b = K[rows][:, columns], a[rows], b[columns]
        affinities = [affinity.select(rows, columns) for affinity in affinities]
    student, teacher, spare = _solve_both(*affinities, epsilon, epsilon_teacher, a, b, **options)
    return _Klot.apply(_from_matrix, teacher, student, spare, K), student, teacher


def klot_from_features(F, G, F_teacher, G_teacher, epsilon=0.05, epsilon_teacher=0.01, a=None, b=None, **options):
    """`klot` of ``F @ G.T`` and ``F_teacher @ G_teacher.T``, neither of which is formed; differentiable in F and G."""
    if (len(F), len(G)) != (len(F_teacher), len(G_teacher)):
        raise ValueError(
            "Student and teacher must have the same rows, but there are "
            f"{len(F)} and {len(G)} of the student, {len(F_teacher)} and {len(G_teacher)} of the teacher."
        )
    F, G = check_features(F, G)
    F_teacher, G_teacher = (Z.to(F.dtype) for Z in check_features(F_teacher.detach(), G_teacher.detach()))
    a, b = check_problem(FactoredAffinity(F, G), epsilon, a, b)
    rows, columns = a > 0, b > 0
    if not (rows.all() & columns.all()):
        F, F_teacher, G, G_teacher = F[rows], F_teacher[rows], G[columns], G_teacher[columns]
        a, b = a[rows], b[columns]
    affinities = FactoredAffinity(F.detach(), G.detach()), FactoredAffinity(F_teacher, G_teacher)
    student, teacher, spare = _solve_both(*affinities, epsilon, epsilon_teacher, a, b, **options)
    return _Klot.apply(_from_features, teacher, student, spare, F, G), student, teacher


def klot_of_shares(F, G, F_teacher, G_teacher, group, *, epsilon, epsilon_teacher, stores, **options):
    """`klot_from_features` of rows that the processes of a group hold some of each, maybe none.

    The plans are those of all rows of F with all of G. Of the matrices a process has the rows of its F, stored if `stores`;
    all of G come to it. The value is the same in all of them; gradients are `group.size` times the share that one's own rows
    have in them, so that their mean over the group is right, as it is of terms that all compute.
    """
    check_epsilon(epsilon)
    G, G_teacher = group.all_rows(G), group.all_rows(G_teacher)
    if stores:
        one_pass, inputs = _from_matrix, (F @ G.T,)
        affinity = StoredAffinity(inputs[0].detach(), group)
        affinity_teacher = StoredAffinity(F_teacher @ G_teacher.T, group)
    else:
        one_pass, inputs = _from_features, (F, G)
        affinity = FactoredAffinity(F.detach(), G.detach(), group)
        affinity_teacher = FactoredAffinity(F_teacher, G_teacher, group)
    a, b = (
        torch.full((size,), 1 / of, dtype=torch.float64, device=F.device)
        for size, of in ((len(F), affinity.n_rows), (len(G), len(G)))
    )
    student, teacher, spare = _solve_both(affinity, affinity_teacher, epsilon, epsilon_teacher, a, b, **options)
    value = _Klot.apply(one_pass, teacher, student, spare, *inputs)
    if value.requires_grad:
        value.register_hook(lambda gradient: gradient * group.size)
    return value, student, teacher


def _solve_both(
    affinity,
    affinity_teacher,
    epsilon,
    epsilon_teacher,
    a,
    b,
    *,
    tol=1e-4,
    tol_teacher=None,
    max_iter=1000,
    init=None,
    init_teacher=None,
):
    """Student's and teacher's plan, and a list of spare memory of their shape, or of none.

    The teacher's tolerance is the student's if None; either may be given a start.
    """
    check_epsilon(epsilon_teacher)
    tol_teacher, options = tol if tol_teacher is None else tol_teacher, {"max_iter": max_iter, "spare": []}
    teacher = solve(affinity_teacher, epsilon_teacher, a, b, tol=tol_teacher, init=init_teacher, **options)
    # The gradient is exact only if both plans share their marginals, so the student is given those the teacher has.
    student = solve(affinity, epsilon, a, teacher.column_sums, tol=tol, init=init, **options)
    return student, teacher, options["spare"]


class _Klot(torch.autograd.Function):
    """Value and gradients in one pass over the plans, `one_pass`; inputs and gradients are held until the backward pass."""

    @staticmethod
    def forward(ctx, one_pass, teacher, student, spare, *inputs):
        ctx.recipe = one_pass, teacher, student
        ctx.save_for_backward(*inputs)
        value, ctx.gradients = one_pass(teacher, student, spare, ctx.needs_input_grad[4:], *inputs)
        return value.to(inputs[0].dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        inputs = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # the first backward pass has given them away
            one_pass, teacher, student = ctx.recipe
            _, gradients = one_pass(teacher, student, [], ctx.needs_input_grad[4:], *inputs)
        return None, None, None, None, *(None if Z is None else Z.mul_(grad_output) for Z in gradients)


def _from_matrix(teacher, student, spare, needed, K):
    """KLOT and its gradient in K, in spare memory if there is some."""
    value, gradient = _zero(teacher), None
    if needed[0]:
        gradient = spare.pop() if spare else torch.empty_like(K)
    for rows, T, P in _plan_rows(teacher, student, value):
        if gradient is not None:
            # Thm C.4: (P - P*) / epsilon with the student's epsilon (Thm 5.1 of the main text misprints it)
            torch.sub(P, T, out=gradient[rows]).div_(student.epsilon)
    return *student.affinity.group.total(value), [gradient]


def _from_features(teacher, student, spare, needed, F, G):
    """KLOT of ``K = F @ G.T`` and its gradients: ``dF = dK @ G`` and ``dG = dK.T @ F``, block by block."""
    value = _zero(teacher)
    spare.clear()  # of no use here, and the blocks need memory
    dF, dG = (torch.zeros_like(Z) if wanted else None for Z, wanted in zip((F, G), needed, strict=True))
    with full_precision(F.device):
        for rows, T, P in _plan_rows(teacher, student, value):
            dK = P.sub_(T).div_(student.epsilon)
            if dF is not None:
                torch.mm(dK, G, out=dF[rows])
            if dG is not None:
                dG.addmm_(dK.T, F[rows])
    return *student.affinity.group.total(value), [dF, dG]


def _zero(result):
    return torch.zeros((), dtype=result.f.dtype, device=result.f.device)


def _plan_rows(teacher, student, value):
    """Block by block, rows and both plans there, in memory used again; their share of the divergence goes to `value`."""
    scratch = [student.affinity.scratch() for _ in range(3)]
    for rows in student.affinity.row_blocks():
        T, P, log_ratio = (block[: rows.stop - rows.start] for block in scratch)
        teacher.log2_plan(rows, out=T)
        student.log2_plan(rows, out=P)
        torch.sub(T, P, out=log_ratio)
        T.clamp_(min=FLOOR).exp2_()
        P.clamp_(min=FLOOR).exp2_()
        # the masses make it the generalised KL, which is >= 0 short of convergence too
        divergence = math.log(2) * log_ratio.mul_(T).sum(dim=1) + P.sum(dim=1) - T.sum(dim=1)
        value += divergence.sum(dtype=value.dtype)
        yield rows, T, P
