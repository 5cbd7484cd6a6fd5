"""
Cells: from RNA to open chromatin
=================================

Few cells are measured twice, for their RNA and for where their chromatin is open (ATAC); most are measured once and gone. Can
the twice-measured ones bring the others together, when some cells of either sample have no like in the other?
"""

# %%
# Generated cells
# ---------------
# No real cells ship with the package: these are generated. A cell has a hidden program, a place in ten dimensions around that
# of its type. Rates of 150 genes and of 250 peaks follow from the program, and counts from the rates: negative binomial, at
# a depth of the cell's own. Types A to D are in either sample, E has its RNA measured alone, F its chromatin. Real cells are
# less kind: they come in batches, on trajectories, and with programs of their own in either view.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from skalign import BridgeFlow, CCATeacher
from skalign.metrics import foscttm

n_draws = 3
max_iter = 200
parts = (("ABCD", 200), ("ABCDE", 400), ("ABCDF", 400), ("ABCD", 300))  # measured twice, RNA, ATAC, twice to test


def count(rng, programs, maps, level):
    """Negative binomial counts, of dispersion 1/2, around rates that follow from the programs."""
    rates = np.exp(programs @ maps + level) * rng.lognormal(0, 0.3, (len(programs), 1))
    return rng.poisson(rng.gamma(2.0, rates / 2.0))


def embed(twice, once, test):
    """Logarithms of counts per thousand, then a PCA that has not seen the test cells."""
    twice, once, test = (np.log1p(1e3 * counts / counts.sum(axis=1, keepdims=True)) for counts in (twice, once, test))
    pca = PCA(15, random_state=0).fit(np.concatenate([twice, once]))
    return pca.transform(np.concatenate([twice, once])), pca.transform(test)


def draw(seed):
    """Embedded cells of both views, to learn from and to test, and the types of all parts."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, 10))
    types = [rng.choice(list(present), n) for present, n in parts]
    programs = [centres[np.char.find("ABCDEF", kind)] + 0.6 * rng.standard_normal((len(kind), 10)) for kind in types]
    views = []
    for n_columns, level, measured in ((150, 0, (0, 1, 3)), (250, -1, (0, 2, 3))):  # genes, then peaks
        maps, levels = 0.4 * rng.standard_normal((10, n_columns)), rng.normal(level, 0.6, n_columns)
        views.append(embed(*(count(rng, programs[part], maps, levels) for part in measured)))
    (X, X_test), (Y, Y_test) = views
    return X, Y, X_test, Y_test, types


# %%
# Two couplings
# -------------
# A flow carries RNA into the space of chromatin, so that a classifier of types, fitted on RNA, whose types are known, can
# read cells of which only the chromatin was measured. It learns from the 200 pairs and from a transport plan between the
# pools. ``coupling="exact"`` finds a partner for every cell; ``"unbalanced"`` may leave cells without. A ridge CCA has the
# pairs alone.
#
# FOSCTTM is the share of cells that are nearer than the true match, of 300 unseen ones; "types" is how many of these get their
# type from the ten nearest cells of RNA.

pairs = np.column_stack([np.arange(200)] * 2)
found = {"CCA, pairs alone": [], "flow, exact": [], "flow, unbalanced": []}
for seed in range(n_draws):
    X, Y, X_test, Y_test, types = draw(seed)
    aligners = {
        "CCA, pairs alone": CCATeacher(),
        "flow, exact": BridgeFlow(hidden_layer_sizes=(128, 128), max_iter=max_iter, random_state=seed),
        "flow, unbalanced": BridgeFlow(
            coupling="unbalanced", hidden_layer_sizes=(128, 128), max_iter=max_iter, random_state=seed
        ),
    }
    for name, aligner in aligners.items():
        aligner.fit(X, Y, pairs)
        reader = KNeighborsClassifier(10).fit(aligner.transform(X), np.concatenate(types[:2]))
        right = reader.score(aligner.transform_y(Y_test), types[3])
        found[name].append((100 * foscttm(*aligner.transform(X_test, Y_test)), 100 * right))
print(f"{'':20}{'FOSCTTM, %':>14}{'types, %':>14}")
for name, figures in found.items():
    (apart, right), (apart_std, right_std) = np.mean(figures, axis=0), np.std(figures, axis=0)
    print(f"{name:20}{apart:8.1f} ± {apart_std:3.1f}{right:8.1f} ± {right_std:3.1f}")

# %%
# Who is matched
# --------------
# Left: all cells of the last draw in the space of chromatin, RNA as the unbalanced flow carries it, in two directions. Right:
# the mass that a cell has in the plan, by type, where an even share is 1.

flow = aligners["flow, unbalanced"]
plane = PCA(2, random_state=0).fit(Y)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=[1.2, 1])
colors = dict(zip("ABCDEF", plt.get_cmap("Dark2").colors, strict=False))
for rows, pool, marker in ((flow.transform(X), 1, "o"), (Y, 2, "x")):
    at = plane.transform(rows[200:])
    left.scatter(*at.T, c=[colors[kind] for kind in types[pool]], marker=marker, s=14, lw=0.8, alpha=0.7)
for kind, color in colors.items():
    left.scatter([], [], s=30, color=color, label={"E": "E, RNA alone", "F": "F, ATAC alone"}.get(kind, kind))
left.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.02))
left.set(title="dots: RNA, carried over; crosses: ATAC", xticks=[], yticks=[])

for shift, name, color in ((-0.2, "flow, exact", "0.6"), (0.2, "flow, unbalanced", "#1a9850")):
    plan = 400 * aligners[name].coupling_
    masses = np.concatenate([plan.sum(axis=1), plan.sum(axis=0)])
    kinds = np.concatenate(types[1:3])
    right.bar(np.arange(6) + shift, [masses[kinds == kind].mean() for kind in colors], 0.4, color=color, label=name)
right.set_xticks(range(6), list(colors))
right.set(title="mass of a cell in the plan", xlabel="type", ylim=(0, 1.4))
right.legend(frameon=False, ncols=2)
right.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The unbalanced plan gives cells without a like, of types E and F, a fraction of the mass of the others, though nobody told it
# which they are; the exact plan has to match them all, and its flow is worse for it. With 200 pairs, and programs this simple,
# no flow beats a ridge CCA of the pairs alone. What a flow gives besides is rows in the space of chromatin itself.
