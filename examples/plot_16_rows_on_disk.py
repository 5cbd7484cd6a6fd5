"""
Rows on disk
============

A million embeddings of a thousand columns are four gigabytes, and one seldom has only a million. Can an aligner learn from rows
that stay on disk, embed them there, and how much memory does that take?
"""

# %%
# Files
# -----
# Generated views, written in half precision as encoders write them, a shard at a time: no array ever holds a whole pool. 300
# pairs are in memory; a gallery of 5,000 pictures, and the texts of 500 of them, are for the search.

import tempfile
import tracemalloc
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skalign import CrossModalRetriever, SOTAlign

n_shards, n_rows = 4, 10_000  # of each view, and of each shard
rng = np.random.default_rng(0)
to_pictures, to_texts = rng.standard_normal((16, 192)), rng.standard_normal((16, 256))
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)


def encode(factors, to):
    return (factors @ to + 3 * rng.standard_normal((len(factors), to.shape[1]))).astype(np.float16)


for shard in range(n_shards):
    np.save(folder / f"pictures_{shard}.npy", encode(rng.standard_normal((n_rows, 16)), to_pictures))
    np.save(folder / f"texts_{shard}.npy", encode(rng.standard_normal((n_rows, 16)), to_texts))
known, shown = rng.standard_normal((300, 16)), rng.standard_normal((5_000, 16))
A, B = encode(known, to_pictures), encode(known, to_texts)
np.save(folder / "gallery.npy", encode(shown, to_pictures))
queries = encode(shown[:500], to_texts)

# %%
# Fit from paths
# --------------
# A pool is the path of a file, or a list of paths as shards. Blocks are read in random order while the heads are trained.

pictures, texts = ([folder / f"{name}_{shard}.npy" for shard in range(n_shards)] for name in ("pictures", "texts"))
max_iter = 50
aligner = SOTAlign(max_iter=max_iter, batch_size_unpaired=128, random_state=0)
aligner.fit(A, B, X_unpaired=pictures, Y_unpaired=texts)

# %%
# Embed to disk, then search
# --------------------------
# ``transform`` reads block by block and writes into a memory map. Search holds the embedded gallery in memory; it may be a
# library's index as well, see :class:`~skalign.CrossModalRetriever`.

embedded = np.lib.format.open_memmap(
    folder / "embedded.npy", mode="w+", dtype=np.float32, shape=(5_000, aligner.n_components_)
)
aligner.transform(folder / "gallery.npy", out=embedded)
rows = CrossModalRetriever(n_neighbors=5).fit(embedded).kneighbors(aligner.transform_y(queries), return_distance=False)
print(f"right first: {np.mean(rows[:, 0] == np.arange(500)):.1%} of 500 texts, among {len(embedded):,} pictures")

# %%
# Memory
# ------
# The highest that NumPy's arrays took at once, in a fit of ten steps on one, two and four shards: read into memory, and left on
# disk. What torch takes for a step depends on the batches alone, and is left out.

short = SOTAlign(max_iter=10, batch_size_unpaired=128, random_state=0)
numbers = (1, 2, n_shards)


def peak_of_fit(pool_of):
    """Peak of traced memory, in MiB, of loading pools and fitting on them, by number of shards."""
    peaks = []
    for n in numbers:
        tracemalloc.start()
        short.fit(A, B, X_unpaired=pool_of(pictures[:n]), Y_unpaired=pool_of(texts[:n]))
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    return peaks


peaks = {
    "read into memory": peak_of_fit(lambda paths: np.concatenate([np.load(path) for path in paths])),
    "left on disk": peak_of_fit(lambda paths: paths),
}
peaks["the files"] = [sum(path.stat().st_size for path in pictures[:n] + texts[:n]) / 2**20 for n in numbers]

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
sizes = [n * n_rows for n in numbers]
for (name, mebibytes), style in zip(peaks.items(), ("o-", "o-", ":"), strict=True):
    ax.plot(sizes, mebibytes, style, color={"left on disk": "#1a9850"}.get(name, "0.5"), label=name)
    print(f"{name:18}" + "".join(f"{one:7.0f}" for one in mebibytes) + " MiB")
ax.set(xlabel="unpaired rows of each view", ylabel="peak of a fit, MiB", ylim=(0, None))
ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Left on disk, pools take the same memory however many rows they have; read into memory, forty times what these narrow files
# take, since a fit makes copies in higher precision, and of 1,000 kernel features a row. :doc:`/user_guide/scaling` tells what
# else may be a pool, and what must be in memory.
