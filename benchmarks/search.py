"""A cross-validated search of SOTAlign's settings on Flickr8k, plain and through a pipeline, and its worth on new images.

    python benchmarks/search.py --data FOLDER --pairs 500 --jobs 2

FOLDER holds flickr8k_mnv2_minilm; pairs and unpaired rows are drawn as by quality.py and stand in one table with a mask, which
metadata routing takes to fit, splitter and scorer. The pipeline standardises X by a step before SOTAlign, and Y by
`y_transformer`. Candidates are scored on held-out pairs of their own number, a fifth of `--pairs`; the last table is of the dev
images and all their captions, on which nothing is chosen.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import sklearn
from quality import draw_flickr8k
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skalign import CCATeacher, SOTAlign
from skalign.metrics import make_retrieval_scorer, mean_recall
from skalign.model_selection import PairedKFold

GRID = {"teacher__power": [0.5, 1.0], "teacher_weight": [0.2, 0.4]}  # 0.5 and 0.4 are what SOTAlign does by itself


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders of the data sets")
    parser.add_argument("--pairs", type=int, default=500, help="number of pairs")
    parser.add_argument("--seed", type=int, default=0, help="draws the pairs")
    parser.add_argument("--folds", type=int, default=5, help="folds of the search")
    parser.add_argument("--max-iter", type=int, default=200, help="training steps of each fit")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    X, Y, mask, test = table(options)
    print(f"{mask.sum()} pairs and {(~mask).sum()} unpaired rows of either view")
    settings = {"max_iter": options.max_iter, "random_state": 0}
    plain = SOTAlign(CCATeacher(), **settings)
    pipeline = make_pipeline(StandardScaler(), SOTAlign(CCATeacher(), y_transformer=StandardScaler(), **settings))
    found = {"default": SOTAlign(**settings).fit(X, Y, mask)}
    for name, estimator, prefix in (("search", plain, ""), ("search, pipeline", pipeline, "sotalign__")):
        search = GridSearchCV(
            estimator,
            {prefix + parameter: values for parameter, values in GRID.items()},
            cv=PairedKFold(options.folds),
            scoring=make_retrieval_scorer("mean_recall"),
            n_jobs=options.jobs,
        )
        start = time.perf_counter()
        with sklearn.config_context(enable_metadata_routing=True):
            search.fit(X, Y, paired_idx=mask)
        seconds, results = time.perf_counter() - start, search.cv_results_
        print(f"\n{name}: best {search.best_params_} at {100 * search.best_score_:.2f}, {seconds:.0f} s\n")
        print("| candidate | mean of six recalls, held-out pairs |\n|---|---|")
        for row in zip(results["params"], results["mean_test_score"], results["std_test_score"], strict=True):
            print("| {} | {:.2f} ± {:.2f} |".format(row[0], *(100 * value for value in row[1:])), flush=True)
        found[name] = search.best_estimator_
    print("\n| settings | mean of six recalls, dev |\n|---|---|")
    for name, aligner in found.items():
        print(f"| {name} | {100 * mean_recall(*embed(aligner, *test[:2]), test[2]):.2f} |")


def table(options):
    """Views as one table, the mask of its pairs, and the test set; of the unpaired captions as many as images are drawn."""
    split = draw_flickr8k(options.data, options.pairs, options.seed)
    x_free, y_free = split["pools"]["X_unpaired"], split["pools"]["Y_unpaired"]
    y_free = y_free[np.random.default_rng(options.seed).permutation(len(y_free))[: len(x_free)]]
    X, Y = (np.concatenate([pairs, free]) for pairs, free in zip(split["pairs"], (x_free, y_free), strict=True))
    return X, Y, np.arange(len(X)) < options.pairs, split["test"]


def embed(aligner, X, Y):
    last = aligner[-1] if isinstance(aligner, Pipeline) else aligner
    return aligner.transform(X), last.transform_y(Y)


if __name__ == "__main__":
    main()
