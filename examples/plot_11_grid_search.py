"""
Choosing settings by cross-validation
=====================================

The ridge of a CCA and the weight of its directions are two numbers nobody knows in advance. Can 300 pairs tell which are
good, and would the test set have chosen the same?
"""

# %%
# The data, as one table
# ----------------------
# Cross-validation slices rows, so the pairs must stand in rows: :func:`~skalign.model_selection.to_row_aligned` puts pairs
# first, then unpaired pictures with NaN for their text, then unpaired texts with NaN for their picture.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from skalign import CCATeacher
from skalign.datasets import load_emoji
from skalign.metrics import make_retrieval_scorer, mean_recall
from skalign.model_selection import PairedKFold, to_row_aligned

data = load_emoji()
X, Y, groups = to_row_aligned(data.X, data.Y, data.paired_idx)
print(f"{len(X)} rows, {np.isfinite(X).all(1).sum()} with a picture, {np.isfinite(Y).all(1).sum()} with a text")

# %%
# The search
# ----------
# :class:`~skalign.model_selection.PairedKFold` tests on pairs only, 60 in each of five folds, and leaves unpaired rows in
# every training part. Nothing else is special: it is scikit-learn's own search.

regs, powers = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], [0.0, 0.5, 1.0, 2.0]
search = GridSearchCV(
    CCATeacher(),
    {"power": powers, "reg": regs},
    scoring=make_retrieval_scorer("mean_recall"),
    cv=PairedKFold(5, shuffle=True, random_state=0),
).fit(X, Y)
print(f"chosen: {search.best_params_}")

# %%
# And the test set?
# -----------------
# 400 pictures and 710 texts nobody has seen. Their gallery is larger than that of a fold, so the recalls are lower; what
# counts is where the top is.

on_test = []
for settings in search.cv_results_["params"]:
    aligner = CCATeacher(**settings).fit(data.X, data.Y, data.paired_idx)
    on_test.append(mean_recall(*aligner.transform(data.X_test, data.Y_test), data.test_idx))

shape = len(powers), len(regs)
tables = {
    "held-out pairs, 5 folds": search.cv_results_["mean_test_score"].reshape(shape),
    "test pictures and texts": np.reshape(on_test, shape),
}
chosen = np.unravel_index(search.best_index_, shape)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
for ax, (title, table) in zip(axes, tables.items(), strict=True):
    image = ax.imshow(100 * table, aspect="auto", cmap="viridis")
    ax.plot(*chosen[::-1], "o", mfc="none", mec="w", ms=16, mew=2, label="chosen")
    ax.plot(*np.unravel_index(table.argmax(), shape)[::-1], "wx", ms=9, mew=2, label="best here")
    ax.set(title=title, xlabel="reg")
    ax.set_xticks(range(len(regs)), regs)
    ax.set_yticks(range(len(powers)), powers)
    figure.colorbar(image, ax=ax, label="mean recall, percent")
axes[0].set_ylabel("power")
axes[0].legend(loc="lower left", labelcolor="w", facecolor="0.4", framealpha=0.7)
plt.show()

# %%
# What was chosen, and what the folds say of it:

spread = search.cv_results_["std_test_score"][search.best_index_]
found, best = tables["test pictures and texts"][chosen], max(on_test)
print(f"held-out pairs: {search.best_score_:.1%} ± {spread:.1%}; test: {found:.1%}, best on test: {best:.1%}")

# %%
# The search finds the right region. Within it, settings are nearer to one another than the folds can tell: a fold has 60
# pairs. ``CCATeacher(reg="auto")``, the default, searches the ridge by itself.
