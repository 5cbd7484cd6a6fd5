"""Exact and approximate retrieval of CrossModalRetriever beside scikit-learn's brute force: time, peak memory and recall.

    python benchmarks/retrieval.py --gallery 1000000 --queries 1000 --kind clustered --threads 2

Gallery and queries are rows of unit length in float32, drawn alike and stored before the clock starts; building an index
counts as `fit`. Every measurement is a process of its own and a line of the results file, and one that stands there is not
repeated: stop it at any time and call it again; after a change of code begin a new file.

- `random`: every direction alike. No row is much nearer than the next, the worst case of a graph; the exact rows do not mind.
- `clustered`: 1,000 clusters in columns whose deviation falls as j^-0.5, as in embeddings, where about 20 directions count.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

N_CLUSTERS, SPREAD = 1000, 0.7  # deviation inside a cluster, in units of that of the centres
BLOCK = 10_000


def main():
    options = parse_arguments()
    task = {name: getattr(options, name) for name in ("kind", "gallery", "queries", "dim", "neighbors", "threads")}
    if options.worker:
        return print(json.dumps(work(argparse.Namespace(**task), options.worker)))
    found = read_results(options.results, task)
    for name in options.methods:
        if name in found:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads))
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found[name] = json.loads(process.stdout.splitlines()[-1])
        with options.results.open("a") as file:
            file.write(json.dumps(task | {"method": name} | found[name]) + "\n")
    print_table(task, found)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gallery", type=int, default=1_000_000, help="rows of the gallery")
    parser.add_argument("--queries", type=int, default=1000, help="number of queries")
    parser.add_argument("--dim", type=int, default=256, help="columns of the shared space")
    parser.add_argument("--neighbors", type=int, default=10, help="rows to find for each query")
    parser.add_argument("--kind", choices=["random", "clustered"], default="clustered", help="how rows lie")
    parser.add_argument("--threads", type=int, default=1, help="threads of every method")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="which methods")
    parser.add_argument("--results", type=Path, default=Path("retrieval.jsonl"), help="a line a measurement, added to")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    return parser.parse_args()


def read_results(file, task):
    """What was measured of this task, by method."""
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else []
    return {line["method"]: line for line in lines if task.items() <= line.items()}


def print_table(task, found):
    print("{queries} queries, {gallery} x {dim} {kind}, k = {neighbors}, threads: {threads}\n".format(**task))
    print("| method | fit, s | search, s | peak MiB beyond the gallery | recall |\n|---|---|---|---|---|")
    for name in METHODS:
        if name in found:
            result = found[name]
            recall = recall_of(result["rows"], found[EXACT]["rows"]) if EXACT in found else "?"
            cells = [name, f"{result['fit']:.2f}", f"{result['search']:.2f}", f"{result['peak']:.0f}", recall]
            print("| " + " | ".join(cells) + " |")


def recall_of(rows, expected):
    """Share of the rows of exact search that were found."""
    shares = [len(set(own) & set(exact)) / len(exact) for own, exact in zip(rows, expected, strict=True)]
    return f"{np.mean(shares):.4f}"


def work(task, method):
    rng = np.random.default_rng(0)
    rows, queries = (rng.standard_normal((n, task.dim), dtype=np.float32) for n in (task.gallery, task.queries))
    centres = rng.standard_normal((N_CLUSTERS, task.dim), dtype=np.float32)
    for Z in (rows, queries):
        for start in range(0, len(Z), BLOCK):  # in place, since copies would hide the peak of the search
            block = Z[start : start + BLOCK]
            if task.kind == "clustered":
                block *= SPREAD
                block += centres[rng.integers(N_CLUSTERS, size=len(block))]
                block *= np.arange(1, task.dim + 1, dtype=np.float32) ** -0.5
            block /= np.linalg.norm(block, axis=1, keepdims=True)
    METHODS[method](rows[:20], 1, task.threads)(queries[:1])  # imports and warms up
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    start = time.perf_counter()
    search = METHODS[method](rows, task.neighbors, task.threads)
    fitted = time.perf_counter()
    found = search(queries)
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"fit": fitted - start, "search": end - fitted, "peak": peak / 2**20, "rows": found.tolist()}


def skalign_with(index):
    def fit(rows, k, threads):
        from skalign import CrossModalRetriever

        retriever = CrossModalRetriever(Identity(), n_neighbors=k, index=index, n_jobs=threads).fit(rows)
        return lambda queries: retriever.kneighbors(queries, return_distance=False)

    return fit


class Identity:
    """An aligner of rows that are embedded already."""

    is_fitted_ = True

    def fit(self, X, Y):
        return self

    def transform(self, X):
        return X

    transform_y = transform


def sklearn_brute(rows, k, threads):
    from sklearn.neighbors import NearestNeighbors

    neighbors = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(rows)
    return lambda queries: neighbors.kneighbors(queries, return_distance=False)


EXACT = "exact"
METHODS = {
    EXACT: skalign_with("exact"),
    "sklearn": sklearn_brute,
    "usearch": skalign_with("usearch"),
    "voyager": skalign_with("voyager"),
    "hnswlib": skalign_with("hnswlib"),
}

if __name__ == "__main__":
    main()
