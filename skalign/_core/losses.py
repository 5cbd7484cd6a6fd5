"""The losses besides KLOT, as plain functions of torch tensors. Knows torch, knows nothing of estimators."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax


def siglip(K, matches, scale, bias):
    r"""Sigmoid loss :math:`-\frac{1}{n} \sum_{ij} \log\sigma(z_{ij} (s K_{ij} + b))`; see `skalign.losses.siglip`."""
    if matches.shape != K.shape:
        raise ValueError(f"`matches` must have the shape of K, {tuple(K.shape)}, but it has {tuple(matches.shape)}.")
    # log sigma(x) for a match and log sigma(-x) = log(1 - sigma(x)) otherwise: the binary cross-entropy
    return binary_cross_entropy_with_logits(scale * K + bias, matches.to(K.dtype), reduction="sum") / K.shape[0]


def info_nce(K, K_teacher, epsilon, epsilon_teacher, symmetric=True):
    r"""Row-wise :math:`\mathrm{KL}(\mathrm{softmax}(K^*/\varepsilon^*) \,\|\, \mathrm{softmax}(K/\varepsilon))` (eq. 10)."""
    if K.shape != K_teacher.shape:
        raise ValueError(
            f"K and K_teacher must have one shape, but have {tuple(K.shape)} and {tuple(K_teacher.shape)}."
        )
    if not (epsilon > 0 and epsilon_teacher > 0):
        raise ValueError(f"Both epsilons must be positive, but they are {epsilon} and {epsilon_teacher}.")
    log_p = log_softmax(K / epsilon, dim=1)
    log_t = log_softmax(K_teacher.detach() / epsilon_teacher, dim=1)
    value = (log_t.exp() * (log_t - log_p)).sum(dim=1).mean()
    return (value + info_nce(K.T, K_teacher.T, epsilon, epsilon_teacher, symmetric=False)) / 2 if symmetric else value


def cka(F, G, F_teacher, G_teacher):
    r"""1 - CKA of :math:`F G^T` and :math:`F^* G^{*T}` from column-centred factors (SOTAlign, Prop. C.5 and C.6).

    With :math:`\langle H K H, H K^* H\rangle = \langle F_c^T F^*_c, G_c^T G^*_c\rangle`, nothing of size n x m is formed.
    """
    if not (
        F.ndim == G.ndim == F_teacher.ndim == G_teacher.ndim == 2
        and (len(F), len(G)) == (len(F_teacher), len(G_teacher))
        and (F.shape[1], F_teacher.shape[1]) == (G.shape[1], G_teacher.shape[1])
    ):
        shapes = ", ".join(str(tuple(Z.shape)) for Z in (F, G, F_teacher, G_teacher))
        raise ValueError(
            f"F, G, F_teacher and G_teacher must have shapes (n, d), (m, d), (n, k) and (m, k), but they have {shapes}. Embed "
            "the same rows by student and teacher."
        )
    F, G, F_teacher, G_teacher = (Z - Z.mean(dim=0) for Z in (F, G, F_teacher.detach(), G_teacher.detach()))
    cross = _inner(F, G, F_teacher, G_teacher)
    return 1 - cross / (_norm(F, G) * _norm(F_teacher, G_teacher))


def _inner(F, G, F2, G2):
    return ((F.T @ F2) * (G.T @ G2)).sum()


def _norm(F, G):
    return _inner(F, G, F, G).clamp_min(torch.finfo(F.dtype).tiny).sqrt()
