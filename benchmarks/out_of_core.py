"""SOTAlign on unpaired rows that lie on disk: peak memory, and speed beside the same fit in memory.

    python benchmarks/out_of_core.py --folder FOLDER                  # 2 million rows a view, 8 GB
    python benchmarks/out_of_core.py --folder FOLDER --rows 0 --compare-rows 100000

Rows of 1,024 columns in float16, X and Y of planted common factors, are written into FOLDER (and kept: an existing file is
used again), with 10,000 pairs beside them. Every measurement is one `SOTAlign().fit` of `--max-iter` steps in a process of
its own: `path` has the pools as paths of .npy files, `memory map` as np.memmap, `memory` as arrays. What is compared runs
in turn, `--rounds` times, and medians are printed.

Peaks are those of the whole process, libraries included (Linux): `resident` is VmHWM; of it `anonymous` is what the process
has allocated, and `file pages` are files that are mapped, the libraries and memory maps, which the system drops when others
need the room. Both are looked at every 20 ms. A step takes the median of the times between two calls of the divergence, on
the clock and of the processor; the latter, of all threads, also counts where others want the cores. A fit is all of it,
with the passes that check the rows and judge their preprocessing.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

KINDS = ["path", "memory map", "memory"]
N_FACTORS, BLOCK = 64, 16_384


def main():
    options = parse_arguments()
    if options.worker:
        return print(json.dumps(work(options.worker[0], int(options.worker[1]), options)))
    generate("pairs", options.pairs, options)
    measurements = [(options.rows, KINDS[:2], 1), (options.compare_rows, KINDS, options.rounds)]
    for n_rows, kinds, rounds in measurements:
        if n_rows == 0:
            continue
        generate(n_rows, n_rows, options)
        runs = {kind: [] for kind in options.kinds or kinds if kind in kinds}
        for _, kind in itertools.product(range(rounds), runs):
            runs[kind].append(launch(kind, n_rows, options))
            print(kind, runs[kind][-1], file=sys.stderr, flush=True)
        print_table(n_rows, {kind: median(found) for kind, found in runs.items()}, options)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the rows are written")
    parser.add_argument("--rows", type=int, default=2_000_000, help="unpaired rows of either view; 0 leaves it out")
    parser.add_argument(
        "--compare-rows", type=int, default=0, help="rows of the comparison with memory; 0 leaves it out"
    )
    parser.add_argument("--columns", type=int, default=1024, help="columns of either view")
    parser.add_argument("--pairs", type=int, default=10_000, help="number of pairs")
    parser.add_argument("--max-iter", type=int, default=20, help="training steps")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="what to measure; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="how often what is compared is measured")
    parser.add_argument("--threads", type=int, default=1, help="threads of the linear algebra")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # kind, rows
    return parser.parse_args()


def generate(name, n_rows, options):
    """Both views in float16, row by row of the same factors if they are pairs, else of their own."""
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, N_FACTORS, options.columns), dtype=np.float32)
    rng = np.random.default_rng((n_rows, name == "pairs"))
    paths = [file_of(view, name, options) for view in "XY"]
    if all(path.exists() for path in paths):
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    files = [
        np.lib.format.open_memmap(path.with_suffix(".part"), "w+", np.float16, (n_rows, options.columns))
        for path in paths
    ]
    for start in range(0, n_rows, BLOCK):
        n = min(BLOCK, n_rows - start)
        shared = rng.standard_normal((n, N_FACTORS), dtype=np.float32)
        for file, loadings in zip(files, maps, strict=True):
            factors = shared if name == "pairs" else rng.standard_normal((n, N_FACTORS), dtype=np.float32)
            noise = rng.standard_normal((n, options.columns), dtype=np.float32)
            file[start : start + n] = factors @ loadings + 4 * noise
    for file, path in zip(files, paths, strict=True):
        file.flush()
        path.with_suffix(".part").replace(path)


def file_of(view, name, options):
    return options.folder / f"{view}_{name}_{options.columns}.npy"


def launch(kind, n_rows, options):
    """One measurement in a process of its own."""
    names = ("folder", "columns", "pairs", "max-iter", "threads")
    settings = [part for name in names for part in (f"--{name}", str(getattr(options, name.replace("-", "_"))))]
    limits = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], str(options.threads))
    process = subprocess.run(
        [sys.executable, __file__, *settings, "--worker", kind, str(n_rows)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | limits,
    )
    if process.returncode:
        raise RuntimeError(f"{kind}, {n_rows} rows:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def work(kind, n_rows, options):
    """What a process does: one fit, watched."""
    from skalign import SOTAlign
    from skalign._core import divergences

    called, klot = [], divergences.klot

    def timed(*args, **kwargs):
        called.append((time.perf_counter(), time.process_time()))
        return klot(*args, **kwargs)

    divergences.klot = timed
    X, Y = (np.load(file_of(view, "pairs", options))[: options.pairs] for view in "XY")
    given = {"path": lambda path: path, "memory map": lambda path: np.load(path, mmap_mode="r"), "memory": np.load}[
        kind
    ]
    pools = {f"{view}_unpaired": given(file_of(view, n_rows, options)) for view in "XY"}
    aligner = SOTAlign(max_iter=options.max_iter, random_state=0)
    with Memory() as memory:
        start = time.perf_counter()
        aligner.fit(X, Y, **pools)
        fit = time.perf_counter() - start
    step, processor = (statistics.median(np.diff(times).tolist()) for times in zip(*called, strict=True))
    return {
        "step": step,
        "processor": processor,
        "rows_per_second": 2 * aligner.batch_size_unpaired / step,
        "fit": fit,
        "loss": aligner.loss_curve_["loss"][-1],
        **memory.peaks,
    }


class Memory:
    """Peaks of the memory of this process, in GB."""

    def __init__(self):
        self.peaks, self.ended = {"resident": 0, "anonymous": 0, "file pages": 0}, threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self.ended.wait(0.02):
            self._look()

    def _look(self):
        lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        now = {name: int(value.split()[0]) / 1024**2 for name, value in lines if value.strip().endswith("kB")}
        for peak, name in (("resident", "VmHWM"), ("anonymous", "RssAnon"), ("file pages", "RssFile")):
            self.peaks[peak] = max(self.peaks[peak], now[name])

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        self._look()


def median(runs):
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def print_table(n_rows, results, options):
    stored = 4 * n_rows * options.columns / 1024**3
    print(f"\n{n_rows} unpaired rows of either view, {options.columns} columns, float16: {stored:.2f} GB\n")
    columns = [
        "peak resident",
        "peak anonymous",
        "peak file pages",
        "s a step",
        "of the processor",
        "rows / s",
        "s a fit",
        "last loss",
    ]
    print("| pools | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for kind, run in results.items():
        peaks = " | ".join(f"{run[name]:.2f} GB" for name in ("resident", "anonymous", "file pages"))
        rate = f"{run['step']:.3f} | {run['processor']:.3f} | {run['rows_per_second']:.0f}"
        print(f"| {kind} | {peaks} | {rate} | {run['fit']:.1f} | {run['loss']:.3f} |")
    for kind in [kind for kind in results if kind != "memory"] if "memory" in results else ():
        step, processor, fit = (results["memory"][key] / results[kind][key] for key in ("step", "processor", "fit"))
        share = f"{step:.2f} of the throughput of memory a step ({processor:.2f} by time of the processor)"
        print(f"\n{kind}: {share}, {fit:.2f} of the whole fit")


if __name__ == "__main__":
    main()
