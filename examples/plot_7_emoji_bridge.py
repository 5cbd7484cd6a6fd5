"""
From words into the space of pictures
=====================================

Aligners such as ``SOTAlign`` meet in a third space, shared by both views. :class:`~skalign.BridgeFlow` carries one view into
the space of the other: here texts into the space of an image encoder, where everything built on pictures (an index, a
classifier, a decoder) works as it is. We know the name of 300 emoji; the rest of the pictures and texts is unpaired.
"""

# %%
# The data
# --------
# ``X`` holds texts this time, ``Y`` pictures. Every emoji has two texts, its name and its keywords.

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import RidgeCV

from skalign import BridgeFlow
from skalign.datasets import load_emoji, load_emoji_thumbnails
from skalign.metrics import retrieval_report

data = load_emoji()
texts, pictures = data.Y, data.X
pairs = np.asarray(data.paired_idx)
pairs = pairs[:, ::-1] if pairs.ndim == 2 else np.column_stack([pairs, pairs])
print(
    f"{len(pairs)} pairs, {len(texts)} texts of {texts.shape[1]} columns, {len(pictures)} pictures of {pictures.shape[1]}"
)

# %%
# The flow, and a map from the pairs alone
# ----------------------------------------
# Unpaired texts and pictures are matched by optimal transport; the flow is trained on these couples and on the pairs.

flow = BridgeFlow(max_iter=600, random_state=0).fit(texts, pictures, pairs)
print("held-out pairs, mean reciprocal rank by cost:", {name: round(mrr, 3) for name, mrr in flow.cv_scores_.items()})
ridge = RidgeCV(np.logspace(-4, 3, 15)).fit(texts[pairs[:, 0]], pictures[pairs[:, 1]])

# %%
# Recall on unseen emoji
# ----------------------
# 710 texts and 400 pictures, in percent, by cosines around the mean picture.

found = {"ridge on the pairs": ridge.predict(data.Y_test), "BridgeFlow": flow.transform(data.Y_test)}
gallery = data.X_test - flow.y_mean_
for name, mapped in found.items():
    report = retrieval_report(mapped - flow.y_mean_, gallery, data.test_idx[:, ::-1])
    print(f"{name:20}" + "".join(f"{f'R@{k}':>7}{100 * report[f'x_to_y_r{k}']:6.1f}" for k in (1, 5, 10)))

# %%
# What it finds
# -------------
# Twelve names, spread evenly over the test emoji, and the five pictures nearest to where the flow carries them. A green
# frame marks the one that was meant.

meant = np.linspace(0, len(data.X_test) - 1, 12).astype(int)
shown = data.test_idx[2 * meant, 1]  # the rows of their names
queries = found["BridgeFlow"][shown] - flow.y_mean_
cosines = queries @ (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).T
nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :5]
thumbnails = load_emoji_thumbnails()[data.emoji_test]

figure, axes = plt.subplots(6, 12, figsize=(11, 5.2), width_ratios=[3, 1, 1, 1, 1, 1] * 2)
for query, row in enumerate(axes.reshape(12, 6)):
    row[0].text(0, 0.5, textwrap.fill(data.captions_test[shown[query]], 22), va="center", size=11)
    for ax, picture in zip(row[1:], nearest[query], strict=True):
        ax.imshow(thumbnails[picture], interpolation="lanczos")
        if picture == meant[query]:
            ax.add_patch(plt.Rectangle((0, 0), 1, 1, transform=ax.transAxes, fill=False, ec="#1a9850", lw=4))
for ax in axes.flat:
    ax.axis("off")
figure.suptitle(f"BridgeFlow, {len(pairs)} pairs: names carried into the space of pictures", size=13, weight="bold")
figure.tight_layout()

target = Path("output") / "emoji_bridge.png"
target.parent.mkdir(exist_ok=True)
figure.savefig(target, dpi=150)
print(f"picture: {target}")
