"""SOTAlign under torchrun beside the same fit in one process: loss curve, retrieval, memory of a rank, time of a step.

    python benchmarks/distributed.py                                   # 100,000 rows of 256 columns a view, 8,192 x 8,192
    python benchmarks/distributed.py --rows 2000 --batch 512 --ranks 3

Planted views of common factors, drawn by every process from one seed, with 1,000 pairs. Both runs are one `SOTAlign().fit` of
`--max-iter` steps, one after the other, each process with `--threads` threads. On one machine the ranks share its cores.

`memory` is the peak of resident memory in `fit` beyond what was resident before it, data and libraries (Linux), of the rank
that needs most; `step` is the median time between two calls of the divergence, in the slowest rank. The difference of the loss
curves is the largest of a step, relative to the loss.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def main():
    options = parse_arguments()
    if options.worker:
        found = work(options)
        return options.worker.joinpath(f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
    print_table(launch(1, options), launch(options.ranks, options), options)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="unpaired rows of either view")
    parser.add_argument("--columns", type=int, default=256, help="columns of either view")
    parser.add_argument("--batch", type=int, default=8192, help="unpaired rows of either view in a step")
    parser.add_argument("--pairs", type=int, default=1000, help="number of pairs")
    parser.add_argument("--max-iter", type=int, default=5, help="training steps")
    parser.add_argument("--ranks", type=int, default=2, help="processes beside one")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # folder of what is found
    return parser.parse_args()


def launch(n_ranks, options):
    """What each of some ranks found."""
    names = ("rows", "columns", "batch", "pairs", "max-iter")
    settings = [part for name in names for part in (f"--{name}", str(getattr(options, name.replace("-", "_"))))]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)] if n_ranks > 1 else []
    limits = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], str(options.threads))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *torchrun, __file__, *settings, "--worker", folder]
        process = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | limits)
        if process.returncode:
            raise RuntimeError(f"{n_ranks} ranks:\n{process.stderr}")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(n_ranks)]


def work(options):
    """What a rank does: one fit, watched."""
    from skalign import SOTAlign
    from skalign._core.divergences import Divergence
    from skalign.datasets import make_two_views

    data = make_two_views(
        options.pairs,
        options.rows,
        options.rows,
        1000,
        n_features_x=options.columns,
        n_features_y=options.columns,
        n_latent=min(64, options.columns),
        noise=0.3,
        random_state=0,
    )
    X, Y = data.X.astype(np.float32), data.Y.astype(np.float32)
    called, forward = [], Divergence.forward

    def timed(*args, **kwargs):
        called.append(time.perf_counter())
        return forward(*args, **kwargs)

    Divergence.forward = timed
    aligner = SOTAlign(max_iter=options.max_iter, batch_size_unpaired=options.batch, random_state=0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    start = time.perf_counter()
    aligner.fit(X, Y, data.paired_idx)
    return {
        "fit": time.perf_counter() - start,
        "step": statistics.median(np.diff(called).tolist()),
        "memory": resident("VmHWM") - before,
        "loss": aligner.loss_curve_["loss"],
        "recall": aligner.score(data.X_test, data.Y_test, paired_idx=data.test_idx),
    }


def resident(name):
    """GB of this process."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024**2


def print_table(one, ranks, options):
    (alone,) = one
    together = {name: max(rank[name] for rank in ranks) for name in ("fit", "step", "memory")} | {
        "recall": ranks[0]["recall"]
    }
    print(
        f"\n{options.rows} unpaired rows of {options.columns} columns a view, batches of {options.batch} x {options.batch}, "
        f"{options.threads} threads a process\n"
    )
    print(f"| | one process | {options.ranks} ranks | ratio |\n|---|---|---|---|")
    for name, unit in (("memory", "GB"), ("step", "s"), ("fit", "s"), ("recall", "")):
        row = f"{alone[name]:.3f} {unit} | {together[name]:.3f} {unit} | {together[name] / alone[name]:.2f}"
        print(f"| {name} | {row.replace('  ', ' ')} |")
    loss = np.array(alone["loss"])
    difference = max(np.abs((np.array(rank["loss"]) - loss) / loss).max() for rank in ranks)
    print(f"\nlargest relative difference of the loss curves: {difference:.1e}")


if __name__ == "__main__":
    main()
