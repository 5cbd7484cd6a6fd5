"""
Pipelines, and pools of unpaired rows
=====================================

The pictures come in mixed units and need scaling and a PCA before they are aligned; most of them come as a pool of their
own, in no pair. Where do both go, so that a search can choose the width of the PCA, and do pools help?
"""

# %%
# The data
# --------
# The columns of the pictures get units from 0.01 to 100, as hand-made features might have. Pairs stand in ``X`` and ``Y``,
# row by row; all else is in two pools.

import matplotlib.pyplot as plt
import numpy as np
import sklearn
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skalign import CCATeacher, HubnessCorrection
from skalign.datasets import load_emoji
from skalign.metrics import make_retrieval_scorer, mean_recall
from skalign.model_selection import PairedKFold

data = load_emoji()
units = 10 ** np.random.default_rng(0).uniform(-2, 2, data.X.shape[1]).astype(np.float32)
pictures, texts, p = units * data.X, data.Y, len(data.paired_idx)
pools = {"X_unpaired": pictures[p:], "Y_unpaired": texts[p:]}

# %%
# The pipeline
# ------------
# A pipeline transforms X alone. ``transform_input`` sends the pool of X through the same steps, for which scikit-learn
# wants metadata routing. The pools keep their length in every fold: only pairs are dealt.

sklearn.set_config(enable_metadata_routing=True)
aligner = HubnessCorrection(CCATeacher(reg=0.03), random_state=0)
pipeline = Pipeline(
    [("scale", StandardScaler()), ("pca", PCA(random_state=0)), ("align", aligner)],
    transform_input=["X_unpaired"],
)
search = GridSearchCV(
    pipeline,
    {"pca__n_components": [10, 20, 40, 80, 160]},
    scoring=make_retrieval_scorer("mean_recall"),
    cv=PairedKFold(5, shuffle=True, random_state=0),
)
search.fit(pictures[:p], texts[:p], **pools)
print(f"chosen: {search.best_params_}")

# %%
# Without pools
# -------------
# Here the unpaired rows serve as anchors of the hubness correction; :class:`~skalign.SOTAlign` trains on them as well. The
# same search, on the pairs alone:

alone = sklearn.base.clone(search).fit(pictures[:p], texts[:p])

# %%
# On unseen emoji
# ---------------


def recalls_on_test(search):
    """Mean recall of each width, fitted on all pairs."""
    recalls = []
    for settings in search.cv_results_["params"]:
        fitted = sklearn.base.clone(search.estimator).set_params(**settings)
        fitted.fit(pictures[:p], texts[:p], **(pools if search is not alone else {}))
        F, G = fitted.transform(units * data.X_test), fitted[-1].transform_y(data.Y_test)
        recalls.append(100 * mean_recall(F, G, data.test_idx))
    return recalls


figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
widths = search.param_grid["pca__n_components"]
for name, one, color in (("pairs and pools", search, "#1a9850"), ("pairs alone", alone, "0.5")):
    axes[0].plot(widths, 100 * one.cv_results_["mean_test_score"], "o-", color=color, label=name)
    axes[1].plot(widths, recalls_on_test(one), "o-", color=color, label=name)
for ax, title in zip(axes, ("held-out pairs, 5 folds", "unseen emoji"), strict=True):
    ax.set(title=title, xlabel="columns after PCA", ylabel="mean recall, percent", xscale="log")
    ax.set_xticks(widths, widths)
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False)
plt.show()

# %%
# The search finds what the test shows: the PCA throws away what is needed, and wider is better to the end. Pools make no
# difference, since 300 pairs are anchors enough for the correction; what they are worth to the training of
# :class:`~skalign.SOTAlign` is in :doc:`/what_moves_the_needle`.

sklearn.set_config(enable_metadata_routing=False)
