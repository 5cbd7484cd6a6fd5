"""
Sorting pictures by words alone
===============================

Unicode sorts its emoji into nine groups. Can pictures be sorted as well, when nobody tells the group of a single one, and
the groups are described in words only? And how many labelled pictures would do as well?
"""

# %%
# The data
# --------
# 300 pairs of a picture and its name align the two views; their groups are left out. The prompts of a group are the texts
# (a name and keywords each) of 585 other emoji, whose pictures nobody has seen. There is no sentence such as "a picture of
# food" among them: the text encoder is not at hand here, its embeddings of names are. 400 more pictures are to be sorted.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay

from skalign import CCATeacher, ZeroShotClassifier
from skalign.datasets import load_emoji

data = load_emoji()
n_pairs = len(data.paired_idx)
prompts, groups = data.Y[n_pairs:], data.group_Y[n_pairs:]
for group, count in zip(*np.unique(groups, return_counts=True), strict=True):
    print(f"{group:18}{count:4} prompts, such as {str(data.captions[n_pairs:][groups == group][0])!r}")

# %%
# Classes from words
# ------------------
# A group stands at the mean of its prompts in the shared space; a picture goes to the nearest.

aligner = CCATeacher().fit(data.X, data.Y, data.paired_idx)
classifier = ZeroShotClassifier(aligner, prompts=prompts, prompt_classes=groups).fit()
from_words = classifier.score(data.X_test, data.group_test)
largest = np.unique(data.group_test, return_counts=True)[1].max() / len(data.group_test)
print(f"right: {from_words:.1%}; always the largest group: {largest:.1%}")

# %%
# Classes from labelled pictures
# ------------------------------
# The rival is told the groups of some of the 300 pictures: a logistic regression on picture embeddings, five draws each.

rng = np.random.default_rng(0)
n_draws = 5
n_labels = [20, 40, 80, 150, 300]
from_labels = np.empty((len(n_labels), n_draws))
for i, n in enumerate(n_labels):
    for j in range(n_draws):
        rows = rng.permutation(n_pairs)[:n]
        rival = LogisticRegression(max_iter=1000).fit(data.X[rows], data.group_X[rows])
        from_labels[i, j] = rival.score(data.X_test, data.group_test)
    print(f"{n:4} labelled pictures: {from_labels[i].mean():.1%}")

# %%
# What is taken for what
# ----------------------
# Left, in percent of each true group: flags, animals and symbols are found by their words; activities, the group of fewest
# prompts and of the most unlike things (balls, cards, medals), are strewn over all others. Right: for this task the words
# are worth between 150 and 300 labelled pictures.

figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.4), width_ratios=[1.3, 1])
ConfusionMatrixDisplay.from_estimator(
    classifier,
    data.X_test,
    data.group_test,
    normalize="true",
    values_format=".0%",
    xticks_rotation=40,
    cmap="Greens",
    colorbar=False,
    ax=left,
)
plt.setp(left.get_xticklabels(), ha="right")
left.set(title=f"{from_words:.0%} of 400 pictures right", xlabel="group by words", ylabel="true group")

right.errorbar(n_labels, from_labels.mean(axis=1), from_labels.std(axis=1), marker="o", color="0.4", capsize=3)
right.axhline(from_words, color="#1a9850", lw=2)
right.axhline(largest, color="0.6", ls=":")
right.text(n_labels[0], from_words + 0.01, "words alone", color="#1a9850", va="bottom")
right.text(n_labels[-1], largest + 0.01, "always the largest group", color="0.4", ha="right", va="bottom")
right.text(n_labels[2] * 1.15, from_labels[2].mean() - 0.03, "logistic regression", color="0.4", va="top")
right.set(xscale="log", xlabel="labelled pictures", ylabel="right, of 400", ylim=(0, 0.85))
right.set_xticks(n_labels, n_labels)
right.minorticks_off()
right.yaxis.set_major_formatter("{x:.0%}")
right.spines[["top", "right"]].set_visible(False)
right.set_title("What the words are worth")
figure.tight_layout()
plt.show()
