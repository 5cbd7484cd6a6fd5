"""
From files to a service
=======================

Embeddings lie on disk, are aligned, and are to answer queries elsewhere, perhaps without Python. Which steps does it take, and
are the answers the same at each of them?
"""

# %%
# Files
# -----
# Encoders run once and write ``.npy`` files; :func:`~skalign.datasets.load_embeddings` maps them into memory instead of
# reading them, and ``transform`` is given a part at a time.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import skalign
from skalign import CCATeacher, CrossModalRetriever, HubnessCorrection
from skalign.datasets import load_embeddings, load_emoji, load_emoji_thumbnails

data = load_emoji()
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
np.save(folder / "pictures.npy", data.X)
np.save(folder / "texts.npy", data.Y)
np.save(folder / "gallery.npy", data.X_test)

files = load_embeddings(folder, mmap_mode="r")
print({name: (type(rows).__name__, rows.shape) for name, rows in files.items() if name != "DESCR"})

# %%
# Fit, save, load
# ---------------

aligner = HubnessCorrection(CCATeacher(), random_state=0).fit(files.pictures, files.texts, data.paired_idx)
aligner.save(folder / "aligner.safetensors")
loaded = skalign.load(folder / "aligner.safetensors")  # runs no code of the file
print(f"{(folder / 'aligner.safetensors').stat().st_size / 2**20:.1f} MiB")

# %%
# An index
# --------
# The gallery is embedded once.

parts = [loaded.transform(files.gallery[i : i + 100]) for i in range(0, len(files.gallery), 100)]
service = CrossModalRetriever(n_neighbors=5).fit(np.concatenate(parts))
asked = data.test_idx[[100, 220, 500, 714], 1]  # four names
queries = data.Y_test[asked]
rows = service.kneighbors(loaded.transform_y(queries), return_distance=False)

# %%
# The same answers from torch
# ---------------------------
# As modules the maps go behind an encoder, or, by ``aligner.to_onnx("texts.onnx", view="y")``, to where there is no Python.

with torch.no_grad():
    by_torch = loaded.to_torch().y(torch.tensor(queries)).numpy()
print(f"largest difference: {np.abs(by_torch - loaded.transform_y(queries)).max():.0e}")
print("same answers:", bool((service.kneighbors(by_torch, return_distance=False) == rows).all()))

# %%
# What it answers
# ---------------

thumbnails = load_emoji_thumbnails()[data.emoji_test]
figure, axes = plt.subplots(len(queries), 6, figsize=(6, 3.4), width_ratios=[2.5, 1, 1, 1, 1, 1])
for line, found, row in zip(axes, rows, asked, strict=True):
    line[0].text(0, 0.5, data.captions_test[row], va="center")
    for ax, picture in zip(line[1:], found, strict=True):
        ax.imshow(thumbnails[picture], interpolation="lanczos")
for ax in axes.flat:
    ax.axis("off")
figure.tight_layout()
plt.show()

# %%
# These are the answers of a closed form on 300 pairs: a flag among flags, the eggplant among food, the whale missed.
