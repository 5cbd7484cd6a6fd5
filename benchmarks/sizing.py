"""How much memory and time a fit takes as its sizes grow: measured here, beside what the formulas of the guide count.

    python benchmarks/sizing.py                 # a few sizes on the CPU, each in a process of its own
    python benchmarks/sizing.py --counted       # only counts: one H200, and 64 of them

Each measurement is a fit of `SOTAlignTransformer(CCATeacher(reg=0.1, n_components=k))` in memory, on rows of planted factors in
float32. Peak is the most that the process held (Linux: VmHWM) beyond what it held before `fit`, the rows it is given among
it, after a small fit as a warm-up. A step takes the median of the times of the processor, one thread, between two calls of the
divergence. Iterations are those of the student's plan and the teacher's together, a step, on average.

Counted times rest on assumptions, not on measurements: 50 TFLOP/s of float32 products, 4.8 TB/s of memory (an H200 has
141 GB), 50 GB/s between ranks, `--iterations` Sinkhorn iterations a step, each of which reads the kernel, or computes it
anew where it is not kept; and that nothing overlaps.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time

from klot import memory, memory_from_here

DENSE = 1 << 26  # entries of a kernel up to which it is kept, as in skalign/_core/divergences.py
KERNELS = 3.3  # matrices of that size that a step holds at most, as measured
SHUFFLED, AHEAD = 8192, 4  # rows shuffled together, and batches read ahead, as in skalign/_core/reading.py
SCRATCH = {
    "cpu": 3 * (1 << 21) + (1 << 23),
    "cuda": 3 * (1 << 24) + (1 << 26),
}  # entries held beside a kernel that is not kept
N_FACTORS = 64
SPEEDS = {"flop": 50e12, "memory": 4.8e12, "network": 50e9}
CLUSTER = [  # rows of a view, where they are, batch, ranks
    (1_000_000, "memory", 4096, 1),
    (1_000_000, "memory", 32_768, 1),
    (100_000_000, "path", 32_768, 1),
    (100_000_000, "path", 131_072, 1),
    (100_000_000, "path", 131_072, 64),
    (100_000_000, "memory", 131_072, 64),
]


def main():
    options = parse_arguments()
    if options.worker:
        return print(json.dumps(measure(*options.worker, options)))
    if options.counted:
        return print_counted(options)
    print("| batch | columns | peak, MB | counted, MB | s a step | GFLOP a step, counted | iterations |")
    print("|---|---|---|---|---|---|---|")
    points = [*itertools.product(options.batches, options.columns[1:2])]
    points += [point for point in itertools.product(options.batches[1:2], options.columns) if point not in points]
    for batch, d in points:
        run = launch(batch, d, options)
        counted = count(options.rows, d, min(options.components, d), batch, options.pairs)
        sizes = f"{run['peak']:.0f} | {counted['peak'] / 1e6:.0f} | {run['step']:.3f} | {counted['flop'] / 1e9:.1f}"
        print(f"| {batch} | {d} | {sizes} | {run['iterations']:.0f} |", flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counted", action="store_true", help="print what is counted for GPUs, and measure nothing")
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="at the second width")
    parser.add_argument("--columns", type=int, nargs="+", default=[256, 512, 1024], help="widths, at the second batch")
    parser.add_argument("--rows", type=int, default=8192, help="unpaired rows of either view")
    parser.add_argument("--pairs", type=int, default=500, help="number of pairs")
    parser.add_argument("--components", type=int, default=256, help="width k of the shared space")
    parser.add_argument("--max-iter", type=int, default=6, help="training steps")
    parser.add_argument(
        "--iterations", type=int, default=20, help="Sinkhorn iterations a step that times are counted with"
    )
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)  # batch, columns
    return parser.parse_args()


def count(n, d, k, batch, pairs, where="memory", ranks=1, device="cpu"):
    """Bytes a rank holds and operations of a step, for views of equal sizes: the formulas of docs/user_guide/sizing.rst."""
    rows, own, entries = n / ranks, batch / ranks, batch**2 / ranks
    if where == "memory":
        pools, preparing, reading = 2 * 4 * rows * (d + k), 4 * rows * (6 * d + 3 * k), 0
    else:
        pools, preparing, reading = 0, 0, 2 * 4 * d * (max(SHUFFLED, batch) + AHEAD * batch) / ranks
    kernel = KERNELS * 4 * entries if entries <= DENSE else 4 * SCRATCH[device]
    # of X the rows of this rank, of Y also those that were gathered, student's and teacher's and a gradient
    step = kernel + 4 * own * (4 * d + 4 * k) + 4 * batch * 4 * k
    heads = 6 * 2 * 4 * (d + 1) * k
    paired = 2 * 4 * pairs * d + 5 * 4 * min(pairs, 2048) ** 2
    teacher = 8 * (8 * pairs * d + 3 * min(pairs, d) ** 2)
    host, held = max(teacher, preparing, reading), pools + paired + heads + step
    return {
        "host": host,
        "device": held,
        "peak": paired + max(host, held - paired + reading),  # where both are one
        "kernel": kernel,
        "flop": 8 * own * d * k + 8 * entries * k,
        "sweep": (0, 4 * entries) if entries <= DENSE else (2 * entries * k, 0),  # operations and bytes of an iteration
        "network": 4 * 4 * batch * k if ranks > 1 else 0,  # student and teacher of Y gathered, the gradient summed
    }


def launch(batch, d, options):
    """One measurement in a process of its own."""
    names = ("rows", "pairs", "components", "max-iter")
    settings = [part for name in names for part in (f"--{name}", str(getattr(options, name.replace("-", "_"))))]
    process = subprocess.run(
        [sys.executable, __file__, *settings, "--worker", str(batch), str(d)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1"),
    )
    if process.returncode:
        raise RuntimeError(f"batch {batch}, {d} columns:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def measure(batch, d, options):
    """What a process does: one fit, watched."""
    import numpy as np

    from skalign import CCATeacher, SOTAlignTransformer
    from skalign._core import divergences

    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, N_FACTORS, d), dtype=np.float32)

    def views(n, factors):
        return [
            f @ loadings + 4 * rng.standard_normal((n, d), dtype=np.float32)
            for f, loadings in zip(factors, maps, strict=True)
        ]

    shared = rng.standard_normal((options.pairs, N_FACTORS), dtype=np.float32)
    X, Y = views(options.pairs, (shared, shared))
    pools = views(options.rows, rng.standard_normal((2, options.rows, N_FACTORS), dtype=np.float32))
    times, iterations, klot = [], [], divergences.klot

    def timed(*args, **kwargs):
        times.append(time.process_time())
        value, student, teacher = klot(*args, **kwargs)
        iterations.append(student.n_iter + teacher.n_iter)
        return value, student, teacher

    divergences.klot = timed
    teacher = CCATeacher(reg=0.1, n_components=min(options.components, d))
    aligner = SOTAlignTransformer(teacher, batch_size_unpaired=batch, max_iter=options.max_iter, random_state=0)
    small = {"X_unpaired": pools[0][:64], "Y_unpaired": pools[1][:64]}
    aligner.fit(X, Y, **small)
    del times[:], iterations[:]
    before = memory_from_here()
    aligner.fit(X, Y, X_unpaired=pools[0], Y_unpaired=pools[1])
    peak = (memory("VmHWM") - before) * 1.048576
    return {"peak": peak, "step": statistics.median(np.diff(times).tolist()), "iterations": statistics.mean(iterations)}


def print_counted(options):
    """What nobody has measured: sizes and times for GPUs."""
    print("Counted, not measured; d = k = 1,024, 10,000 pairs.\n")
    columns = ["rows of a view", "pools", "batch", "ranks", "GB of a GPU", "of it kernel", "GB of its host", "s a step"]
    columns += ["of it network", "s a pass"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for n, where, batch, ranks in CLUSTER:
        counted = count(n, 1024, 1024, batch, 10_000, where, ranks, "cuda")
        flop, read = (options.iterations * one for one in counted["sweep"])
        network = counted["network"] / SPEEDS["network"]
        seconds = (counted["flop"] + flop) / SPEEDS["flop"] + read / SPEEDS["memory"] + network
        held = " | ".join(f"{counted[part] / 1e9:.1f}" for part in ("device", "kernel", "host"))
        print(
            f"| {n:,} | {where} | {batch:,} | {ranks} | {held} | {seconds:.3f} | {network:.3f} | {seconds * n / batch:.0f} |"
        )


if __name__ == "__main__":
    main()
