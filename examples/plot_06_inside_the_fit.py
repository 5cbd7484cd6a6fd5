"""
What happens inside the fit
===========================

The heads are trained to agree with the pairs and with the teacher's transport plan on unpaired rows. Does the loss fall, when
does it stop to help, and what do the two plans look like?
"""

# %%
# Training
# --------
# The heads start at random weights here, so that there is something to learn. A tenth of the 300 pairs is held out; the state
# in which they find one another best is kept.

import matplotlib.pyplot as plt
import numpy as np

from skalign import CCATeacher, SOTAlignTransformer
from skalign.datasets import load_emoji
from skalign.plotting import LossCurveDisplay, PlanDisplay

data = load_emoji()
max_iter = 150
aligner = SOTAlignTransformer(
    CCATeacher(reg=0.03),
    init="random",
    learning_rate=3e-3,
    max_iter=max_iter,
    batch_size_unpaired=512,
    early_stopping=True,
    random_state=0,
).fit(data.X, data.Y, data.paired_idx)

# %%
# The loss
# --------
# The loss is the SigLIP loss of the pairs and 30 times the divergence of the plans.

LossCurveDisplay.from_estimator(aligner)
plt.show()

# %%
# All terms fall to the end, but the held-out pairs are found no better after the step that is kept.
#
# The plans
# ---------
# A plan says how much each picture is matched with each text. Here are 80 unseen emoji and their names, sorted by Unicode's
# groups; a known pair stands on the diagonal.

rows = np.arange(0, len(data.X_test), 5)
names, first = np.unique(data.test_idx[2 * rows, 1], return_index=True)  # the name of each, once
order = np.argsort(data.group_test[rows[first]], kind="stable")
rows, names = rows[first][order], names[order]

figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
for ax, which in zip(axes, ("teacher", "student"), strict=True):
    PlanDisplay.from_estimator(
        aligner, data.X_test[rows], data.Y_test[names], which=which, view_names=("picture", "name"), ax=ax
    )
plt.show()

# %%
# The square from 10 to 24 is the flags: told from everything else, hardly from one another. The teacher's plan is sharper,
# for its temperature is lower, 0.02 against 0.1.
