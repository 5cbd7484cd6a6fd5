"""Exact retrieval of CrossModalRetriever and of scikit-learn's brute force, side by side: time and peak memory.

    python benchmarks/retrieval.py --gallery 1000000 --queries 1000 --dim 256

Gallery and queries are random directions in float32, stored before the clock starts; building an index counts as `fit`. Every
measurement is a process of its own; both must find the same rows.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gallery", type=int, default=1_000_000, help="rows of the gallery")
    parser.add_argument("--queries", type=int, default=1000, help="number of queries")
    parser.add_argument("--dim", type=int, default=256, help="columns of the shared space")
    parser.add_argument("--neighbors", type=int, default=10, help="rows to find for each query")
    parser.add_argument("--worker", choices=list(METHODS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return print(json.dumps(work(options)))
    found = {}
    for name in METHODS:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(process.stdout.splitlines()[-1])
    print(f"{options.queries} queries, {options.gallery} x {options.dim}, k = {options.neighbors}\n")
    print("| method | fit, s | search, s | peak MiB beyond the gallery | rows as by the first |\n|---|---|---|---|---|")
    first = np.array(next(iter(found.values()))["rows"])
    for name, result in found.items():
        same = np.mean(np.array(result["rows"]) == first)
        cells = [name, f"{result['fit']:.2f}", f"{result['search']:.2f}", f"{result['peak']:.0f}", f"{same:.4f}"]
        print("| " + " | ".join(cells) + " |")


def work(options):
    rng = np.random.default_rng(0)
    rows, queries = (
        rng.standard_normal((n, options.dim), dtype=np.float32) for n in (options.gallery, options.queries)
    )
    for Z in (rows, queries):
        Z /= np.sqrt(np.einsum("ij,ij->i", Z, Z))[:, None]  # no copy, which would hide the peak of the search
    METHODS[options.worker](rows[:20], 1)(queries[:1])  # imports and warms up
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    start = time.perf_counter()
    search = METHODS[options.worker](rows, options.neighbors)
    fitted = time.perf_counter()
    found = search(queries)
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"fit": fitted - start, "search": end - fitted, "peak": peak / 2**20, "rows": found.tolist()}


def skalign_exact(rows, k):
    from skalign import CrossModalRetriever

    retriever = CrossModalRetriever(Identity(), n_neighbors=k).fit(rows)
    return lambda queries: retriever.kneighbors(queries, return_distance=False)


class Identity:
    """An aligner of rows that are embedded already."""

    is_fitted_ = True

    def fit(self, X, Y):
        return self

    def transform(self, X):
        return X

    transform_y = transform


def sklearn_brute(rows, k):
    from sklearn.neighbors import NearestNeighbors

    neighbors = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(rows)
    return lambda queries: neighbors.kneighbors(queries, return_distance=False)


METHODS = {"CrossModalRetriever": skalign_exact, "sklearn NearestNeighbors": sklearn_brute}

if __name__ == "__main__":
    main()
