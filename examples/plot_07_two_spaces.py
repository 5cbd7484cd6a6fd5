"""
Two spaces become one
=====================

Before alignment a picture and its name cannot be compared: their spaces have different widths and nothing in common. What
do they look like afterwards, and does a cosine tell a pair from a non-pair?
"""

# %%
# Before and after
# ----------------
# The 400 unseen pictures and their names, in two dimensions. Grey lines join pairs: across the two spaces before, within
# the shared space after.

import matplotlib.pyplot as plt

from skalign import CCATeacher, HubnessCorrection
from skalign.datasets import load_emoji
from skalign.plotting import SimilarityDisplay, SpacesDisplay

data = load_emoji()
pairs = data.test_idx[::2]  # each picture with its name; every other pair is with its keywords
cca = CCATeacher(reg=0.03).fit(data.X, data.Y, data.paired_idx)
SpacesDisplay.from_estimator(cca, data.X_test, data.Y_test, pairs, view_names=("picture", "text"))
plt.show()

# %%
# Flags stand apart in either space, in places of their own; afterwards they share one. For the rest, two dimensions hold too
# little of the variance to tell more.
#
# Cosines of pairs and of non-pairs
# ---------------------------------
# The area under the ROC curve (AUC) is the chance that a pair has a larger cosine than a non-pair. Corrected for hubs,
# cosines are smaller, and compare better from row to row.

corrected = HubnessCorrection(CCATeacher(reg=0.03), random_state=0).fit(data.X, data.Y, data.paired_idx)
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for ax, (name, aligner) in zip(axes, {"CCA": cca, "CCA, CSLS": corrected}.items(), strict=True):
    SimilarityDisplay.from_estimator(aligner, data.X_test, data.Y_test, data.test_idx, name=name, ax=ax)
axes[1].set_ylabel("")
plt.show()

# %%
# A pair beats a non-pair seven times in eight. For a recall at 1 that is little: it has to beat each of hundreds.
