"""Retrieval quality of SOTAlign and its rivals on real embeddings: the referee. `quality_report.py` makes tables of it.

    python benchmarks/quality.py --data FOLDER --results quality.jsonl --seeds 5 --jobs 2

FOLDER holds the folders named in SETS. Every finished run is a line of the results file, and a run that stands there
is not repeated: stop it at any time and call it again; after a change of code or grids begin a new file.

- n pairs are drawn; of the other training rows, one half gives unpaired rows of X, the other half unpaired rows of Y,
  so that no unpaired row has its partner among the unpaired ones.
- The rivals are tuned over the grids below on up to 500 of the unpaired rows of X with their partners, which is more
  than a user has. SOTAlign runs at its defaults and is told of none. With all 6,000 pairs of Flickr8k, 500 are kept back for
  tuning and the winner is fitted again on all.
- Flickr8k counts images: a pair is an image with its first caption, an unpaired image brings all its captions.
- Nothing was ever chosen on the test images of Flickr8k (`dev`). The other sets are development sets: SOTAlign's defaults
  were compared on their test rows too.
"""

import argparse
import itertools
import json
import time
import warnings
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning

from skalign import CCATeacher, ContrastiveTeacher, HubnessCorrection, ProcrustesTeacher, SOTAlign
from skalign.baselines import ASIF, CSA, NNCLR, SAIL, SCLIP, STRUCTURE, SUE, RelativeRepresentation
from skalign.datasets import load_embeddings
from skalign.metrics import retrieval_report

N_VALIDATION = 500
RATES = [3e-4, 1e-3, 3e-3]
METHODS = {  # name: (estimator, grid tuned on the validation set)
    "Procrustes, tuned": (ProcrustesTeacher, {"n_components": [32, 64, 128, None]}),
    "CCA, paper": (CCATeacher, {"reg": [0.1], "power": [0.0]}),
    "CCA, reg auto": (CCATeacher, {}),
    "CCA, tuned": (CCATeacher, {"reg": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1], "power": [0.25, 0.5, 1.0]}),
    "CCA, reg auto, CSLS": (HubnessCorrection, {}),
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
    "SOTAlign, pairs only": (SOTAlign, {}),
    "SOTAlign, linear": (SOTAlign, {"n_landmarks": [0]}),
    "SOTAlign, untrained": (SOTAlign, {"teacher_weight": [1.0], "max_iter": [1]}),
    "SOTAlign, no CSLS": (SOTAlign, {"hubness_correction": [False]}),
    "SOTAlign, InfoNCE": (SOTAlign, {"divergence": ["info_nce"]}),
    "SOTAlign, CKA": (SOTAlign, {"divergence": ["cka"]}),
    "SOTAlign, plain heads": (SOTAlign, {"hubness_correction": [False], "teacher_weight": [0.0]}),
}
COLUMNS = [f"{way}_r{k}" for way in ("x_to_y", "y_to_x") for k in (1, 5, 10)]


def main():
    options = parse_arguments()
    done = {key(result) for result in read_results(options.results)}
    tasks = [
        {"set": name, "pairs": n_pairs, "seed": seed, "method": method}
        for name in options.sets
        for n_pairs, seed in itertools.product(SETS[name][1], range(options.seeds))
        for method in options.methods
        if n_pairs in (options.pairs or SETS[name][1])
    ]
    tasks = [task for task in tasks if key(task) not in done]
    print(f"{len(tasks)} runs to do, {len(done)} done before", flush=True)
    runs = Parallel(options.jobs, return_as="generator_unordered")(delayed(run)(options.data, task) for task in tasks)
    for result in runs:
        with options.results.open("a") as file:
            file.write(as_line(result))
        print(*key(result), f"{100 * result['mean_recall']:.2f}", f"{result['seconds']:.1f} s", flush=True)


def as_line(result):
    """JSON with six decimals, for the runs are kept."""
    rounded = json.loads(json.dumps(result), parse_float=lambda number: round(float(number), 6))
    return json.dumps(rounded) + "\n"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders of the data sets")
    parser.add_argument("--results", type=Path, default=Path("quality.jsonl"), help="a line for each run, added to")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="which data sets")
    parser.add_argument("--pairs", type=int, nargs="+", help="which numbers of pairs; default all of each set")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="which methods")
    parser.add_argument("--seeds", type=int, default=5, help="number of random splits")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    offered = {n_pairs for name in options.sets for n_pairs in SETS[name][1]}
    if options.pairs and not set(options.pairs) <= offered:
        parser.error(f"--pairs must be among {sorted(offered)} for these sets, got {options.pairs}")
    return options


def read_results(file):
    """The finished runs; a last line that was cut off is taken out of the file."""
    if not file.exists():
        return []
    whole, _, cut = file.read_text().rpartition("\n")
    if cut:
        file.write_text(whole + "\n" * bool(whole))
    return [json.loads(line) for line in whole.splitlines()]


def key(result):
    return tuple(result[name] for name in ("set", "pairs", "seed", "method"))


def run(data, task):
    """Tune a method on the validation set where it has a grid, then report on the test set."""
    draw, _, criterion = SETS[task["set"]]
    split = draw(data, task["pairs"], task["seed"])
    if task["method"].endswith("pairs only"):
        split["pools"] = {}
    estimator, grid = METHODS[task["method"]]
    candidates = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    width = min(view.shape[1] for view in split["pairs"])
    candidates = [settings for settings in candidates if (settings.get("n_components") or 0) <= width]
    seconds, best, tuned = [], candidates[0], []
    if len(candidates) > 1:
        for settings in candidates:
            start = time.perf_counter()
            aligner = fit(estimator, settings, split["tuning_pairs"], split["pools"], task["seed"])
            seconds.append(time.perf_counter() - start)
            tuned.append(evaluate(aligner, split["validation"])[criterion])
        best = candidates[int(np.argmin(tuned) if criterion == "foscttm" else np.argmax(tuned))]
    start = time.perf_counter()
    aligner = fit(estimator, best, split["pairs"], split["pools"], task["seed"])
    seconds.append(time.perf_counter() - start)
    result = task | {"settings": best, "seconds": float(np.median(seconds))} | evaluate(aligner, split["test"])
    if isinstance(aligner, SOTAlign):
        result["teacher"] = evaluate(Teacher(aligner), split["test"])
    return result


class Teacher:
    """SOTAlign's own teacher, on raw views."""

    def __init__(self, aligner):
        self.aligner = aligner

    def transform(self, X, Y):
        _, X, Y = self.aligner._second_stage_and_views(X, Y)
        return self.aligner.teacher_.transform(X, Y)


def fit(estimator, settings, pairs, pools, seed):
    if "random_state" in estimator().get_params():
        settings = settings | {"random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer pairs than components is what a grid may meet
        warnings.simplefilter("always", ConvergenceWarning)
        return estimator(**settings).fit(*pairs, **pools)


def evaluate(aligner, views):
    X, Y, matches = views
    return retrieval_report(*aligner.transform(X, Y), matches)


def draw_flickr8k(data, n_pairs, seed, other_texts=None):
    stored = load_embeddings(data / "flickr8k_mnv2_minilm")
    captions = [np.flatnonzero(stored.text_image == image) for image in range(len(stored.image))]
    X, Y = stored.image.astype(np.float32), stored.text.astype(np.float32)

    def pairs(rows):
        return X[rows], Y[[captions[image][0] for image in rows]]

    def gallery(rows):
        texts = [captions[image] for image in rows]
        owners = np.repeat(np.arange(len(rows)), [len(text) for text in texts])
        return X[rows], Y[np.concatenate(texts)], np.column_stack([owners, np.arange(len(owners))])

    paired, x_rows, y_rows, tuning, validation = parts(stored.train, n_pairs, seed)
    pools = {}
    if len(x_rows):
        own = Y[np.concatenate([captions[i] for i in y_rows])]
        pools = {"X_unpaired": X[x_rows], "Y_unpaired": own if other_texts is None else other_texts}
    return {
        "pairs": pairs(paired),
        "tuning_pairs": pairs(tuning),
        "pools": pools,
        "validation": gallery(validation),
        "test": gallery(stored.dev),
    }


def draw_flickr8k_coco(data, n_pairs, seed):
    """The unpaired captions are those of other pictures, from COCO."""
    other = load_embeddings(data / "coco_captions_minilm").text.astype(np.float32)
    return draw_flickr8k(data, n_pairs, seed, other)


def draw_snareseq(data, n_pairs, seed):
    """Tests on 400 cells, drawn anew for each seed."""
    stored = load_embeddings(data / "snareseq")
    cells = np.random.default_rng(1000 + seed).permutation(len(stored.rna))
    return one_to_one(stored.rna, stored.atac, cells[400:], cells[:400], n_pairs, seed)


def draw_uci_mfeat(data, n_pairs, seed):
    """Pixel averages and Fourier coefficients of digits."""
    stored = load_embeddings(data / "uci_mfeat")
    return one_to_one(stored.pix, stored.fou, np.arange(1000), np.arange(1000, 2000), n_pairs, seed)


def one_to_one(X, Y, train, test, n_pairs, seed):
    def both(rows):
        return X[rows], Y[rows]

    paired, x_rows, y_rows, tuning, validation = parts(train, n_pairs, seed)
    return {
        "pairs": both(paired),
        "tuning_pairs": both(tuning),
        "pools": {"X_unpaired": X[x_rows], "Y_unpaired": Y[y_rows]},
        "validation": (*both(validation), None),
        "test": (*both(test), None),
    }


def draw_emoji(data, n_pairs, seed):
    """Pairs with names; names and keywords unpaired and in the test."""
    stored = load_embeddings(data / "emoji")
    X, Y = stored.image.astype(np.float32), stored.text.astype(np.float32)
    paired = np.random.default_rng(seed).permutation(stored.pairs)[:n_pairs]

    def gallery(rows):
        n = np.arange(len(rows))
        texts = np.column_stack([2 * rows, 2 * rows + 1]).ravel()
        return X[rows], Y[texts], np.column_stack([np.repeat(n, 2), np.arange(2 * len(rows))])

    pools = {"X_unpaired": X[stored.unpaired_image], "Y_unpaired": gallery(stored.unpaired_text_of)[1]}
    pairs = X[paired], Y[2 * paired]
    validation = gallery(stored.unpaired_image[:N_VALIDATION])
    return {
        "pairs": pairs,
        "tuning_pairs": pairs,
        "pools": pools,
        "validation": validation,
        "test": gallery(stored.test),
    }


def parts(train, n_pairs, seed):
    """Paired rows, unpaired rows of X and of Y, rows of the pairs to tune on, rows to validate on."""
    rows = np.random.default_rng(seed).permutation(train)
    paired, rest = np.split(rows, [n_pairs])
    if len(rest) == 0:
        return paired, rest, rest, paired[N_VALIDATION:], paired[:N_VALIDATION]
    x_rows, y_rows = np.split(rest, [len(rest) // 2])
    return paired, x_rows, y_rows, paired, x_rows[:N_VALIDATION]


SETS = {  # name: (how a split is drawn, numbers of pairs, what the rivals are tuned by)
    "flickr8k": (draw_flickr8k, [50, 100, 200, 500, 1000, 2000, 6000], "mean_recall"),
    "flickr8k_coco": (draw_flickr8k_coco, [50, 100, 200, 500, 1000, 2000], "mean_recall"),
    "emoji": (draw_emoji, [50, 100, 200, 300], "mean_recall"),
    "uci_mfeat": (draw_uci_mfeat, [50, 100, 200, 500], "foscttm"),
    "snareseq": (draw_snareseq, [50, 100, 200, 300], "foscttm"),
}

if __name__ == "__main__":
    main()
