"""
Two clouds, one rotation
========================

The smallest case: two views of one cloud of points, the second one turned. Twelve of 300 points are known in both. Is that
enough to turn the one onto the other, and to tell who is who?
"""

# %%
# The data
# --------
# A spiral of three arms in three dimensions, and the same spiral turned and blurred. :func:`~skalign.datasets.make_two_views`
# plants such a relation in Gaussian clouds of any width; here we turn a cloud that is easier to recognise.

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import special_ortho_group

from skalign import ProcrustesTeacher
from skalign.metrics import foscttm, recall_at_k

rng = np.random.default_rng(0)
n, n_pairs = 300, 12
angle = rng.uniform(0.3, 2.5, n)
arm = rng.integers(3, size=n)
turn = angle + 2 * np.pi / 3 * arm
X = np.column_stack([angle * np.cos(turn), angle * np.sin(turn), arm - 1.0])
rotation = special_ortho_group.rvs(3, random_state=1)
Y = X @ rotation + 0.03 * rng.standard_normal((n, 3))
mask = np.zeros(n, dtype=bool)
mask[rng.permutation(n)[:n_pairs]] = True

# %%
# Procrustes
# ----------
# ``normalize=False`` keeps the lengths of the points, which carry meaning here. The two maps it finds, one after the other's
# transpose, are the rotation.

aligner = ProcrustesTeacher(normalize=False).fit(X, Y, mask)
found = aligner.x_coef_ @ aligner.y_coef_.T
print(f"largest error of an entry of the rotation, from {n_pairs} pairs: {np.abs(found - rotation).max():.3f}")

# %%
# Who is who?
# -----------
# Cosines forget lengths, so points of one ray are hard to tell apart. The nearest row in the shared space:

F, G = aligner.transform(X[~mask], Y[~mask])
print(
    f"found first among {len(F)}: {recall_at_k(F, G):.0%}; nearer than the true match: {foscttm(F, G):.2%} of the others"
)

# %%
# Before and after
# ----------------
# Left: both clouds as they came, in their first two coordinates. Right: X carried over by the rotation found. Rings mark the
# twelve pairs; all other points were matched with nobody.

carried = (X - aligner.x_mean_) @ found + aligner.y_mean_
figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained", sharex=True, sharey=True)
for ax, (title, cloud) in zip(axes, {"as they came": X, "aligned": carried}.items(), strict=True):
    ax.scatter(*Y[:, :2].T, s=14, color="#d08a2e", label="Y")
    ax.scatter(*cloud[:, :2].T, s=14, color="#2b6cb0", label="X", alpha=0.7)
    ax.plot(*np.stack([cloud[mask, :2], Y[mask, :2]]).transpose(2, 0, 1), color="0.5", lw=0.8)
    for rows in (cloud, Y):
        ax.scatter(*rows[mask, :2].T, s=60, facecolor="none", edgecolor="0.2", lw=0.9)
    ax.set(title=title, xticks=[], yticks=[], aspect="equal")
axes[0].legend(frameon=False)
plt.show()

# %%
# Twelve pairs fix a rotation of three dimensions to a hundredth. Spaces of encoders have hundreds of dimensions and are no
# rotations of one another: there the pairs are too few, and unpaired rows are worth having.
