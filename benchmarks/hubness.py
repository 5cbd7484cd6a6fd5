"""Hubness-corrected retrieval on Flickr8k: similarities of CrossModalRetriever beside embeddings that carry the correction.

    python benchmarks/hubness.py --data FOLDER --results hubness.jsonl

Splits, pools and test are those of `quality.py`, whose FOLDER this is. Hubs are judged by the unpaired rows of the training
set as reference queries. The temperature of the inverted softmax, and how many queries count as near for CSLS, are chosen on
quality.py's validation set, 500 of the unpaired images with their captions, which then are no reference queries; "k = 10"
is CSLS as published, with nothing chosen. Every finished fit is some lines of the results file, and is not repeated.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from quality import N_VALIDATION, draw_flickr8k, fit, read_results

from skalign import CCATeacher, CrossModalRetriever, HubnessCorrection, SOTAlign

KS = (1, 5, 10)
ALIGNERS = {  # name: (estimator, settings, whether its embeddings carry the correction)
    "CCA": (CCATeacher, {}, False),
    "CCA, HubnessCorrection": (HubnessCorrection, {}, True),
    "SOTAlign, no correction": (SOTAlign, {"hubness_correction": False}, False),
    "SOTAlign": (SOTAlign, {}, True),
}
GRIDS = {
    "csls": {"csls_neighbors": [5, 10, 25, 50, 100]},
    "inverted_softmax": {"temperature": [0.01, 0.02, 0.05, 0.1, 0.2]},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the folder flickr8k_mnv2_minilm")
    parser.add_argument("--results", type=Path, default=Path("hubness.jsonl"), help="a line for each row, added to")
    parser.add_argument("--pairs", type=int, default=500, help="number of pairs")
    parser.add_argument("--seeds", type=int, default=3, help="number of random splits")
    options = parser.parse_args()
    results = read_results(options.results)
    for seed in range(options.seeds):
        for name in ALIGNERS:
            task = {"aligner": name, "pairs": options.pairs, "seed": seed}
            if not any(task.items() <= result.items() for result in results):
                lines = [task | line for line in measure(options.data, **task)]
                with options.results.open("a") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in lines))
                results += lines
    print_table([result for result in results if result["pairs"] == options.pairs])


def measure(data, aligner, pairs, seed):
    """Recalls of one aligner, a line for each similarity."""
    split = draw_flickr8k(data, pairs, seed)
    estimator, settings, corrected = ALIGNERS[aligner]
    fitted = fit(estimator, settings, split["pairs"], split["pools"], seed)
    references = split["pools"]["X_unpaired"], split["pools"]["Y_unpaired"]
    yield {"similarity": "cosine", "recalls": recalls(fitted, {}, split["test"], references)}
    if corrected:
        return
    yield {
        "similarity": "csls, k = 10",
        "recalls": recalls(fitted, {"similarity": "csls"}, split["test"], references),
    }
    others = references[0][N_VALIDATION:], references[1]  # of the captions none belongs to an unpaired image
    for similarity, grid in GRIDS.items():
        candidates = [{"similarity": similarity, name: value} for name, values in grid.items() for value in values]
        tuned = [np.mean(recalls(fitted, settings, split["validation"], others)) for settings in candidates]
        best = candidates[int(np.argmax(tuned))]
        yield {
            "similarity": f"{similarity}, chosen",
            "chosen": best,
            "validation": tuned,
            "recalls": recalls(fitted, best, split["test"], references),
        }


def recalls(aligner, settings, views, references):
    """R@1, R@5, R@10 from images to captions, then from captions to images."""
    X, Y, matches = views
    x_of = matches[np.argsort(matches[:, 1]), 0]  # the image of each caption
    found = []
    for gallery, rows, queries, known in (("y", Y, X, references[0]), ("x", X, Y, references[1])):
        retriever = CrossModalRetriever(aligner, n_neighbors=max(KS), gallery=gallery, **settings)
        nearest = retriever.fit(rows, queries=known).kneighbors(queries, return_distance=False)
        hits = x_of[nearest] == np.arange(len(X))[:, None] if gallery == "y" else nearest == x_of[:, None]
        found += [float(hits[:, :k].any(axis=1).mean()) for k in KS]
    return found


def print_table(results):
    print("| aligner | similarity | image to caption R@1/5/10 | caption to image R@1/5/10 | mean | chosen |")
    print("|---|---|---|---|---|---|")
    for name, similarity in dict.fromkeys((result["aligner"], result["similarity"]) for result in results):
        rows = [r for r in results if (r["aligner"], r["similarity"]) == (name, similarity)]
        values = 100 * np.array([row["recalls"] for row in rows])
        ways = [" / ".join(f"{value:.1f}" for value in way) for way in values.mean(axis=0).reshape(2, 3)]
        means = values.mean(axis=1)
        spread = f" ± {means.std(ddof=1):.1f}" if len(means) > 1 else ""
        chosen = [str(value) for row in rows for key, value in row.get("chosen", {}).items() if key != "similarity"]
        print("| " + " | ".join([name, similarity, *ways, f"{means.mean():.1f}{spread}", ", ".join(chosen)]) + " |")


if __name__ == "__main__":
    main()
