"""KLOT, the Kullback-Leibler divergence between two transport plans, with its explicit gradient. Knows torch."""

import torch

from .sinkhorn import FLOOR, check_problem, log_plan, row_blocks, sinkhorn


def klot(
    K, K_teacher, epsilon=0.05, epsilon_teacher=0.01, a=None, b=None, *, tol=1e-4, tol_teacher=None, max_iter=1000
):
    r""":math:`\mathrm{KL}(\mathrm{OT}_{\varepsilon^*}(K^*) \,\|\, \mathrm{OT}_{\varepsilon}(K))` as a differentiable scalar.

    See :func:`skalign.losses.klot` for the parameters. Returns ``(value, student, teacher)``, the last two being the
    `SinkhornResult` of both plans.
    """
    if K.shape != K_teacher.shape:
        raise ValueError(
            f"Both affinities must have one shape, but K has {tuple(K.shape)} and K_teacher {tuple(K_teacher.shape)}."
        )
    K, a, b = check_problem(K, epsilon, a, b)
    rows, columns = a > 0, b > 0
    if not (rows.all() and columns.all()):
        K, K_teacher = K[rows][:, columns], K_teacher[rows][:, columns]
        a, b = a[rows], b[columns]
    tol_teacher = tol if tol_teacher is None else tol_teacher
    teacher = sinkhorn(K_teacher.detach().to(K.dtype), epsilon_teacher, a, b, tol=tol_teacher, max_iter=max_iter)
    # The gradient is exact only if both plans share their marginals, so the student is given those the teacher has.
    student = sinkhorn(K.detach(), epsilon, a, teacher.column_sums, tol=tol, max_iter=max_iter)
    return _Klot.apply(K, teacher, student), student, teacher


class _Klot(torch.autograd.Function):
    """Value and gradient in one pass over row blocks; nothing but the gradient outlives it."""

    @staticmethod
    def forward(ctx, K, teacher, student):
        value = torch.zeros((), dtype=torch.float64 if K.device.type != "mps" else torch.float32, device=K.device)
        gradient = torch.empty_like(K) if ctx.needs_input_grad[0] else None
        for rows in row_blocks(K):
            log_T, log_P = (_log_plan_rows(result, rows) for result in (teacher, student))
            T, P = log_T.clamp(min=FLOOR).exp2_(), log_P.clamp(min=FLOOR).exp2_()
            value += _natural((T * (log_T - log_P)).sum(dtype=value.dtype))
            # the masses make it the generalised KL, which is >= 0 short of convergence too
            value += P.sum(dtype=value.dtype) - T.sum(dtype=value.dtype)
            if gradient is not None:
                # Thm C.4: (P - P*) / epsilon with the student's epsilon (Thm 5.1 of the main text misprints it)
                torch.sub(P, T, out=gradient[rows]).div_(student.epsilon)
        ctx.save_for_backward(gradient)
        return value.to(K.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None


def _log_plan_rows(result, rows):
    """log2 of the plan of a `SinkhornResult` on some rows."""
    unit = _natural(result.epsilon)
    return log_plan(result.K[rows], result.f[rows] / unit, result.g / unit, result.epsilon)


def _natural(log2_value):
    """From units of log2 to natural units."""
    return log2_value * 0.6931471805599453
