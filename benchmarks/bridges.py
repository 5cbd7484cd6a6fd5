"""BridgeFlow on planted and on real views, beside pairs-only maps and classifiers that never left X.

    python benchmarks/bridges.py planted missing classes memory
    python benchmarks/bridges.py real --data FOLDER --results bridges.jsonl --seeds 5

Planted views: latent z in 8 dimensions, each view ``tanh(z W1 + b) W2`` with 64 hidden units and weights of its own, 32 and
48 columns, unit variance, plus noise. "rough" has gain 2.5 and noise 0.05; "clust" ten Gaussian clusters (within 0.5, centres
1), gain 1.5 and noise 0.1. 1000 rows to fit, 50 of them pairs; 1000 unseen rows to test. Top-1 is the share of unseen x whose
own y is the nearest of the 1000. BridgeFlow runs at its defaults wherever the row names no setting.

- planted: top-1 of BridgeFlow, and of ridge and CCA on the pairs.
- missing: "clust" with 3 of its 10 classes taken from Y: mass of the plan on rows of X without a partner, as a share of an
  equal share; and top-1 of the plan's largest entry over the rows with one.
- classes: "clust" without pairs, 50 x and 50 other y labelled: share of unseen x that land nearest to a y of their class.
- memory: peak memory of that fit beyond the data, with ever more unlabelled rows; a process for each.
- real: a share of the training rows is paired and labelled; one half of the others gives unpaired rows of X, the other
  half unpaired rows of Y, so that no unpaired row has its partner among them. Digits cut in two halves, and UCI multiple
  features (Fourier coefficients and pixel averages, columns standardised): accuracy on unseen x of a classifier of Y
  that was trained on every training row of Y, after mapping x there; beside it a classifier trained on X, with every
  label or with those of the labelled share. Flickr8k: mean recall (R@1, 5, 10, both ways) of unseen images and captions.
  Every finished run is a line of the results file, and a run that stands there is not repeated.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skalign import BridgeFlow, CCATeacher, SOTAlign
from skalign.datasets import load_embeddings
from skalign.metrics import retrieval_report

N_TRAIN, N_PAIRS, N_CLASSES = 1000, 50, 10
N_TEST = 500  # of the real sets
REGS = np.logspace(-2, 6, 17)
SHARES = [0.01, 0.05, 0.1, 0.2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=TABLES, help="what to measure")
    parser.add_argument("--seeds", type=int, default=3, help="number of random draws")
    parser.add_argument("--max-iter", type=int, help="training steps of BridgeFlow; its default if not given")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6], help="rows, of memory")
    parser.add_argument("--data", type=Path, help="folder with the folders uci_mfeat and flickr8k_mnv2_minilm, of real")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="which sets, of real")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="labelled shares, of real")
    parser.add_argument("--methods", nargs="+", help="which methods, of real; default all of each set")
    parser.add_argument("--results", type=Path, default=Path("bridges.jsonl"), help="a line for each run, of real")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return print(peak_memory(options.worker, options))
    for name in options.tables:
        TABLES[name](options)


def flow(options, seed, *args, **settings):
    if options.max_iter:
        settings["max_iter"] = options.max_iter
    return BridgeFlow(*args, random_state=seed, **settings)


def table(title, columns, rows):
    print(f"\n{title}\n\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def mean_and_spread(values):
    values = np.asarray(values)
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


def planted_view(z, n_columns, gain, noise, rng):
    W1 = gain / np.sqrt(z.shape[1]) * rng.standard_normal((z.shape[1], 64))
    W2 = rng.standard_normal((64, n_columns)) / 8
    view = np.tanh(z @ W1 + 0.5 * rng.standard_normal(64)) @ W2
    view = (view - view.mean(axis=0)) / view.std()
    return view + noise * rng.standard_normal(view.shape)


def planted_views(kind, seed, n_rows=None):
    """X, Y and the class of each row (None for "rough"); as many rows to test as to fit, if not told how many."""
    n_rows = n_rows or 2 * N_TRAIN
    rng = np.random.default_rng(seed)
    if kind == "clust":
        centres = rng.standard_normal((N_CLASSES, 8))
        labels = rng.integers(N_CLASSES, size=n_rows)
        z, gain, noise = centres[labels] + 0.5 * rng.standard_normal((n_rows, 8)), 1.5, 0.1
    else:
        labels, z, gain, noise = None, rng.standard_normal((n_rows, 8)), 2.5, 0.05
    return planted_view(z, 32, gain, noise, rng), planted_view(z, 48, gain, noise, rng), labels


def top1(F, G):
    return np.mean(cdist(F, G).argmin(axis=1) == np.arange(len(F)))


def planted(options):
    rows = []
    for kind in ("clust", "rough"):
        found = {"BridgeFlow": [], "ridge on the pairs": [], "CCA on the pairs": []}
        costs = []
        for seed in range(options.seeds):
            X, Y, _ = planted_views(kind, seed)
            A, B, X_test, Y_test = X[:N_PAIRS], Y[:N_PAIRS], X[N_TRAIN:], Y[N_TRAIN:]
            mask = np.arange(N_TRAIN) < N_PAIRS
            fitted = flow(options, seed).fit(X[:N_TRAIN], Y[:N_TRAIN], mask)
            costs.append(fitted.cost_)
            found["BridgeFlow"].append(top1(fitted.transform(X_test), Y_test))
            found["ridge on the pairs"].append(top1(RidgeCV(REGS).fit(A, B).predict(X_test), Y_test))
            found["CCA on the pairs"].append(top1(*CCATeacher().fit(A, B).transform(X_test, Y_test)))
        cells = [mean_and_spread(values) for values in found.values()]
        rows.append([kind, *cells, ", ".join(costs)])
    title = f"Top-1 of {N_TRAIN} unseen rows, {N_PAIRS} pairs, {options.seeds} seeds: mean (least to most)"
    table(title, ["views", *found, "cost chosen"], rows)


def missing(options):
    settings = {
        "exact": {},
        "sinkhorn, epsilon 0.01": {"coupling": "sinkhorn", "epsilon": 0.01},
        "partial, mass 1": {"coupling": "partial", "mass": 1.0},
        "partial (mass 0.9)": {"coupling": "partial"},
        "unbalanced, rho 0.05, epsilon 0.01": {"coupling": "unbalanced", "rho": 0.05, "epsilon": 0.01},
        "unbalanced (rho 0.1)": {"coupling": "unbalanced"},
        "semi_relaxed (rho 0.1)": {"coupling": "semi_relaxed"},
    }
    found = {name: {"kept": [], "top1": [], "unseen": []} for name in settings}
    for seed in range(options.seeds):
        X, Y, labels = planted_views("clust", seed)
        train = np.arange(2 * N_TRAIN) < N_TRAIN
        has_partner = labels >= 3
        pairs = np.flatnonzero(train & has_partner)[:N_PAIRS]
        x_rows = np.setdiff1d(np.flatnonzero(train), pairs)
        y_rows = np.setdiff1d(np.flatnonzero(train & has_partner), pairs)
        with_partner = has_partner[x_rows]
        test = np.flatnonzero(~train & has_partner)
        for name, coupling in settings.items():
            fitted = flow(options, seed, **coupling)
            fitted.fit(X[pairs], Y[pairs], X_unpaired=X[x_rows], Y_unpaired=Y[y_rows])
            P = fitted.coupling_
            mass = P.sum(axis=1) / (P.sum() / len(x_rows) if "partial" in name else 1 / len(x_rows))
            best = y_rows[np.asarray(P.argmax(axis=1)).ravel()]
            right = (best == x_rows) & (mass > 0)
            found[name]["kept"].append(mass[~with_partner].mean())
            found[name]["top1"].append(right[with_partner].mean())
            found[name]["unseen"].append(top1(fitted.transform(X[test]), Y[test]))
    rows = [[name, *(mean_and_spread(values) for values in result.values())] for name, result in found.items()]
    columns = ["coupling", "mass kept by x without a partner", "top-1 of the plan", "top-1 of unseen rows"]
    table(f"3 of 10 classes gone from Y, {options.seeds} seeds", columns, rows)


def class_problem(seed, n_rows=None):
    """Views, labels of 5 x and of 5 other y of each class (-1 elsewhere), and the true classes."""
    X, Y, labels = planted_views("clust", seed, n_rows)
    nth = np.array([np.sum(labels[:row] == label) for row, label in enumerate(labels[:N_TRAIN])])  # of its class
    nth = np.pad(nth, (0, len(X) - N_TRAIN), constant_values=N_TRAIN)
    per_class = N_PAIRS // N_CLASSES
    labels_x = np.where(nth < per_class, labels, -1)
    labels_y = np.where((nth >= per_class) & (nth < 2 * per_class), labels, -1)
    return X, Y, labels_x, labels_y, labels


def classes(options):
    settings = {
        "exemplar": {},
        "exemplar, noise": {"source": "noise"},
        "exemplar, labelled rows alone": {"self_training": False},
        "ot (chain over the class means)": {"mode": "ot"},
    }
    found = {name: [] for name in settings}
    for seed in range(options.seeds):
        X, Y, labels_x, labels_y, labels = class_problem(seed)
        judge = KNeighborsClassifier(1).fit(Y[N_TRAIN:], labels[N_TRAIN:])
        for name, setting in settings.items():
            fitted = flow(options, seed, **{"mode": "exemplar"} | setting)
            rows = slice(0, N_TRAIN)
            fitted.fit(X[rows], Y[rows], [], labels_x=labels_x[rows], labels_y=labels_y[rows])
            found[name].append(judge.score(fitted.transform(X[N_TRAIN:]), labels[N_TRAIN:]))
    rows = [[name, mean_and_spread(values)] for name, values in found.items()]
    title = f"Class accuracy of unseen x, no pairs, 50 labels in either view, {options.seeds} seeds"
    table(title, ["mode", "accuracy"], rows)


def memory(options):
    rows = []
    for size in options.sizes:
        command = [sys.executable, __file__, "memory", "--worker", str(size)]
        if options.max_iter:
            command += ["--max-iter", str(options.max_iter)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append([f"{size:,}", *process.stdout.splitlines()[-1].split()])
    table("Peak memory of an exemplar fit", ["rows of each view", "MiB beyond the data", "fit, s"], rows)


def peak_memory(n_rows, options):
    """MiB at the peak of a fit beyond what stood before it, and its seconds."""
    X, Y, labels_x, labels_y, _ = class_problem(0, 10_000)
    flow(options, 0, "exemplar", max_iter=1).fit(X, Y, [], labels_x=labels_x, labels_y=labels_y)  # imports, warms up
    repeats = -(-n_rows // len(X))
    X, Y = (np.tile(Z.astype(np.float32), (repeats, 1))[:n_rows] for Z in (X, Y))
    labels_x, labels_y = (
        np.pad(labels[:n_rows], (0, max(n_rows - 10_000, 0)), constant_values=-1) for labels in (labels_x, labels_y)
    )
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is counted from here
    before = resident("VmRSS")
    start = time.perf_counter()
    flow(options, 0, "exemplar").fit(X, Y, [], labels_x=labels_x, labels_y=labels_y)
    seconds = time.perf_counter() - start
    return f"{resident('VmHWM') - before:.0f} {seconds:.3g}"


def resident(which):
    """MiB of this process in memory, now ("VmRSS") or at the peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def draw_digits(data, seed):
    pictures, labels = load_digits(return_X_y=True)
    halves = pictures.reshape(-1, 8, 8)
    return halves[:, :, :4].reshape(-1, 32), halves[:, :, 4:].reshape(-1, 32), labels


def draw_uci_mfeat(data, seed):
    stored = load_embeddings(data / "uci_mfeat")
    return stored.fou, stored.pix, stored.label.astype(int)


def class_split(draw, data, share, seed):
    X, Y, labels = draw(data, seed)
    rows = np.random.default_rng(seed).permutation(len(X))
    test, train = rows[:N_TEST], rows[N_TEST:]
    X, Y = (StandardScaler().fit(Z[train]).transform(Z).astype(np.float32) for Z in (X, Y))
    paired, rest = np.split(train, [round(share * len(train))])
    return X, Y, labels, paired, *np.array_split(rest, 2), train, test


def class_run(name, method, data, share, seed, options):
    X, Y, labels, paired, x_rows, y_rows, train, test = class_split(SETS[name], data, share, seed)

    def classifier(Z, rows):
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(Z[rows], labels[rows])

    if method == "classifier of X, all labels":
        return classifier(X, train).score(X[test], labels[test])
    if method == "classifier of X, labelled share":
        return classifier(X, paired).score(X[test], labels[test])
    frozen = classifier(Y, train)
    if method == "ridge":
        return frozen.score(RidgeCV(REGS).fit(X[paired], Y[paired]).predict(X[test]), labels[test])
    if method == "BridgeFlow":
        fitted = flow(options, seed).fit(X[paired], Y[paired], X_unpaired=X[x_rows], Y_unpaired=Y[y_rows])
    elif method == "BridgeFlow, pairs alone":
        fitted = flow(options, seed).fit(X[paired], Y[paired])
    else:
        of_x = np.concatenate([paired, x_rows])
        of_y = np.concatenate([paired, y_rows])
        known = np.where(np.arange(len(of_x)) < len(paired), labels[of_x], -1)
        pairs = np.column_stack([np.arange(len(paired))] * 2)
        fitted = flow(options, seed, "exemplar")
        of_known_class = np.where(np.isin(labels[of_y], known), labels[of_y], -1)
        fitted.fit(X[of_x], Y[of_y], pairs, labels_x=known, labels_y=of_known_class)
    return frozen.score(fitted.transform(X[test]), labels[test])


def flickr_run(name, method, data, share, seed, options):
    sys.path.insert(0, str(Path(__file__).parent))
    import quality

    split = quality.draw_flickr8k(data, round(share * 6000), seed)
    A, B = split["pairs"]
    X, Y, matches = split["test"]
    centre = split["pools"]["Y_unpaired"].mean(axis=0)
    if method == "ridge":
        F, G = RidgeCV(REGS).fit(A, B).predict(X) - centre, Y - centre
    elif method.startswith("BridgeFlow"):
        pools = split["pools"] if method == "BridgeFlow" else {}
        fitted = flow(options, seed).fit(A, B, **pools)
        F, G = (Z - fitted.y_mean_ for Z in fitted.transform(X, Y))
    else:
        aligner = CCATeacher() if method == "CCA" else SOTAlign(random_state=seed)
        F, G = aligner.fit(A, B, **split["pools"]).transform(X, Y)
    return retrieval_report(F, G, matches)["mean_recall"]


CLASS_METHODS = [
    "classifier of X, all labels",
    "classifier of X, labelled share",
    "ridge",
    "BridgeFlow, pairs alone",
    "BridgeFlow",
    "BridgeFlow, exemplar",
]
FLICKR_METHODS = ["ridge", "CCA", "SOTAlign", "BridgeFlow, pairs alone", "BridgeFlow"]
SETS = {"digits": draw_digits, "uci_mfeat": draw_uci_mfeat, "flickr8k": None}


def real(options):
    runs = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    done = {(run["set"], run["share"], run["seed"], run["method"]) for run in runs}
    for name in options.sets:
        run_one, methods = (flickr_run, FLICKR_METHODS) if name == "flickr8k" else (class_run, CLASS_METHODS)
        for seed in range(options.seeds):
            for share in options.shares:
                for method in options.methods or methods:
                    if (name, share, seed, method) in done:
                        continue
                    start = time.perf_counter()
                    value = float(run_one(name, method, options.data, share, seed, options))
                    seconds = time.perf_counter() - start
                    run = {
                        "set": name,
                        "share": share,
                        "seed": seed,
                        "method": method,
                        "value": value,
                        "seconds": seconds,
                    }
                    runs.append(run)
                    with options.results.open("a") as file:
                        file.write(json.dumps(run) + "\n")
        rows = []
        for method in options.methods or methods:
            values = [
                [run["value"] for run in runs if (run["set"], run["share"], run["method"]) == (name, share, method)]
                for share in options.shares
            ]
            cells = [f"{np.mean(cell):.3f} ± {np.std(cell):.3f} ({len(cell)})" if cell else "" for cell in values]
            rows.append([method, *cells])
        measure = "mean recall" if name == "flickr8k" else "class accuracy"
        columns = ["method", *(f"{100 * share:g} %" for share in options.shares)]
        table(f"{name}: {measure} on unseen rows by labelled share; mean ± deviation (seeds)", columns, rows)


TABLES = {"planted": planted, "missing": missing, "classes": classes, "memory": memory, "real": real}

if __name__ == "__main__":
    main()
