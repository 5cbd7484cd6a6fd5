"""Retrieval quality of SOTAlign and its rivals on real embeddings, side by side: mean and spread over seeds.

    python benchmarks/quality.py --data FOLDER --pairs 100 500 --seeds 3

FOLDER holds `image`, `text`, `text_image`, `train` and `dev` as `skalign.datasets.load_embeddings` reads them (several
texts per image, rows of one image together). Everything is drawn and tuned inside `train`, nothing but the printed table
is computed on `dev`:

- n pairs: images of a random permutation of `train`, each with its first caption;
- of the rest, one half gives unpaired images, the other half unpaired captions, so that no unpaired image has its caption
  among the unpaired ones;
- the rivals are tuned over the grids below on 500 images of the rest with all their captions. Those that take unpaired
  data have seen these images among it, but none of the captions; SOTAlign runs at its defaults and is told of no match
  in the rest. Trained rivals have 9 to 12 settings each, all but SAIL's with 100 steps.
"""

import argparse
import itertools
import json
import platform
import time
import warnings
from pathlib import Path

import numpy as np

import skalign
from skalign import CCATeacher, ContrastiveTeacher, ProcrustesTeacher, SOTAlign
from skalign.baselines import ASIF, CSA, NNCLR, SAIL, SCLIP, STRUCTURE, SUE, RelativeRepresentation
from skalign.datasets import load_embeddings
from skalign.metrics import retrieval_report

N_VALIDATION = 500
RATES = [3e-4, 1e-3, 3e-3]
METHODS = {  # name: (estimator, grid tuned on the validation set)
    "Procrustes": (ProcrustesTeacher, {"n_components": [32, 64, 128, None]}),
    "CCA, paper": (CCATeacher, {"reg": [0.1], "power": [0.0]}),
    "CCA, reg auto": (CCATeacher, {}),
    "CCA, tuned": (CCATeacher, {"reg": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1], "power": [0.25, 0.5, 1.0]}),
    "CSA, tuned": (CSA, {"reg": [0.0, 3e-3, 1e-2, 3e-2, 1e-1], "n_components": [32, 64, 128, None]}),
    "Relative, tuned": (RelativeRepresentation, {"center": [None, "pairs", "all"]}),
    "ASIF, tuned": (ASIF, {"n_neighbors": [10, 30, 100, 800], "power": [1, 2, 4, 8], "center": [None, "pairs", "all"]}),
    "SAIL, tuned": (ContrastiveTeacher, {"learning_rate": RATES, "max_iter": [50, 100, 300]}),
    "SAIL semi, tuned": (SAIL, {"negatives": ["all"], "learning_rate": RATES, "max_iter": [50, 100, 300]}),
    "STRUCTURE, tuned": (STRUCTURE, {"learning_rate": RATES, "weight": [1, 10, 100]}),
    "NNCLR, tuned": (NNCLR, {"learning_rate": RATES, "n_neighbors": [1, 5, 10]}),
    "S-CLIP, tuned": (SCLIP, {"learning_rate": RATES, "weight_x": [0.1, 1], "weight_y": [0.1, 1]}),
    "SUE, tuned": (SUE, {"n_components": [8, 30], "n_neighbors": [10, 30, 100], "normalize": [False, True]}),
    "SOTAlign": (SOTAlign, {}),
}
COLUMNS = [f"{way}_r{k}" for way in ("x_to_y", "y_to_x") for k in (1, 5, 10)]


def main():
    options = parse_arguments()
    stored = load_embeddings(options.data)
    results = []
    for n_pairs, seed in itertools.product(options.pairs, range(options.seeds)):
        split = draw(stored, n_pairs, seed)
        for name in options.methods:
            results.append(run(name, split, seed) | {"pairs": n_pairs, "seed": seed})
            shown = {key: results[-1][key] for key in ("pairs", "seed", "mean_recall", "seconds", "settings")}
            print(f"{name:14} {shown}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1))
    print_table(results, options)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the embeddings")
    parser.add_argument("--pairs", type=int, nargs="+", default=[100, 500], help="numbers of pairs")
    parser.add_argument("--seeds", type=int, default=3, help="number of random splits")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="which methods to run")
    parser.add_argument("--output", type=Path, help="write every single result to this JSON file")
    return parser.parse_args()


def draw(stored, n_pairs, seed):
    """Pairs, validation set and disjoint unpaired halves from `train`; the test set from `dev`."""
    images = np.random.default_rng(seed).permutation(stored.train)
    paired, rest = np.split(images, [n_pairs])
    half = len(rest) // 2
    X, Y = stored.image.astype(np.float32), stored.text.astype(np.float32)
    captions = [np.flatnonzero(stored.text_image == image) for image in range(len(X))]

    def gallery(rows):
        texts = [captions[image] for image in rows]
        owners = np.repeat(np.arange(len(rows)), [len(text) for text in texts])
        return X[rows], Y[np.concatenate(texts)], np.column_stack([owners, np.arange(len(owners))])

    return {
        "pairs": (X[paired], Y[[captions[image][0] for image in paired]]),
        "pools": {"X_unpaired": X[rest[:half]], "Y_unpaired": Y[np.concatenate([captions[i] for i in rest[half:]])]},
        "validation": gallery(rest[:N_VALIDATION]),
        "test": gallery(stored.dev),
    }


def run(name, split, seed):
    """Tune a method on the validation set where it has a grid, then report on the test set."""
    estimator, grid = METHODS[name]
    candidates = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    start = time.perf_counter()
    fitted = [fit(estimator, settings, split, seed) for settings in candidates]
    seconds = (time.perf_counter() - start) / len(fitted)
    best = 0
    if len(fitted) > 1:
        best = int(np.argmax([evaluate(aligner, split["validation"])["mean_recall"] for aligner in fitted]))
    report = evaluate(fitted[best], split["test"])
    return {"method": name, "settings": candidates[best], "seconds": seconds} | report


def fit(estimator, settings, split, seed):
    if "random_state" in estimator().get_params():
        settings = settings | {"random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer pairs than components is what a grid may meet
        return estimator(**settings).fit(*split["pairs"], **split["pools"])


def evaluate(aligner, views):
    X, Y, matches = views
    return retrieval_report(*aligner.transform(X, Y), matches)


def print_table(results, options):
    """Markdown: mean of the six recalls +- its standard deviation over seeds, then each recall, in percent."""
    print(f"\n{platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}, skalign {skalign.__version__}")
    print(f"{options.data.name}: {options.seeds} seeds, percent, mean ± sd of the mean of the six recalls\n")
    print("| pairs | method | six recalls | I→T R@1/5/10 | T→I R@1/5/10 | seconds a fit |\n|---|---|---|---|---|---|")
    for n_pairs, name in itertools.product(options.pairs, options.methods):
        rows = [result for result in results if result["pairs"] == n_pairs and result["method"] == name]
        mean = 100 * np.mean([row["mean_recall"] for row in rows])
        deviation = 100 * np.std([row["mean_recall"] for row in rows], ddof=min(1, len(rows) - 1))
        recalls = [f"{100 * np.mean([row[column] for row in rows]):.1f}" for column in COLUMNS]
        seconds = np.median([row["seconds"] for row in rows])
        ways = " | ".join(" / ".join(recalls[way : way + 3]) for way in (0, 3))
        print(f"| {n_pairs} | {name} | {mean:.1f} ± {deviation:.1f} | {ways} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
