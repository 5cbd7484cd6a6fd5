"""A training step on a GPU: time and memory beside a dense eager KLOT; and what heads in bfloat16 change.

    python benchmarks/gpu.py                        # steps of 32,768, 131,072 and 262,144 rows of either view
    python benchmarks/gpu.py --device cpu --sizes 1024 2048 --steps 2 --seeds 2      # a minute on the CPU

A step is one of `skalign`'s training loop: linear heads from 1,024 columns to as many, SigLIP on 1,000 pairs, KLOT on n rows
of either view (`clustered` as in klot.py), AdamW. KLOT comes in three ways:

- `eager`: both plans by 100 log-domain iterations on stored matrices, as it was published, and their difference carried back
  by hand;
- `dense`: skalign's on stored matrices, to its tolerance;
- `features`: skalign's streaming one, in memory O(n d).

The first two are run up to 65,536 rows. Every measurement is a process of its own. It tells the median time of its steps after
the first, each waited for, and the peak of the memory beyond what was there before the first: torch's on a GPU, that of the
process elsewhere. Every step starts its plans anew, as with batches from pools that are larger.

The second table has fits of `SOTAlign` on generated views by the precision of the heads: mean and standard deviation, over
seeds, of the six recalls' mean on rows never seen, and of their difference seed by seed.
"""

import argparse
import itertools
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import klot
import numpy as np
import torch

METHODS = ["eager", "dense", "features"]
DENSE = 65_536  # rows up to which matrices are formed
N_PAIRS = 1000
PRECISIONS = ["float32", "bfloat16"]


def main():
    options = parse_arguments()
    rows = []
    for n, method in itertools.product(options.sizes, options.methods):
        if n <= DENSE or method == "features":
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                rows.append((n, method, process.submit(measure, method, n, options).result()))
    print_steps(rows, options)
    print_precisions({name: [recall(name, seed, options) for seed in range(options.seeds)] for name in PRECISIONS})


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32_768, 131_072, 262_144], help="rows of either view")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="which ways to KLOT")
    parser.add_argument("--columns", type=int, default=1024, help="columns of the views and of the shared space")
    parser.add_argument("--steps", type=int, default=5, help="steps of each measurement, the first left out")
    parser.add_argument("--epsilons", type=float, nargs=2, default=[0.1, 0.02], help="student's and teacher's epsilon")
    parser.add_argument("--tol", type=float, default=1e-3, help="L1 marginal error of skalign's plans")
    parser.add_argument("--seeds", type=int, default=5, help="fits of each precision")
    return parser.parse_args()


def measure(method, n, options):
    """What a process does: some steps, watched."""
    from skalign._arrays import resolve_precision
    from skalign._core.heads import build_head
    from skalign._core.objectives import PairsAndTeacher
    from skalign._core.training import OPTIMIZERS, TrainingViews, train_heads, undisturbed

    device, times = torch.device(options.device), []
    X, Y, F_teacher, G_teacher = (Z.to(device) for Z in klot.problem("clustered", n, None, options.columns))
    pairs = torch.arange(min(N_PAIRS, n), device=device)[:, None].expand(-1, 2)
    views = TrainingViews(X[: len(pairs)], Y[: len(pairs)], pairs, X, Y, F_teacher, G_teacher)
    heads = [build_head("linear", options.columns, options.columns, seed).to(device) for seed in (0, 1)]

    def note_time(record):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    before = allocated(device)
    try:
        with undisturbed(device, None):
            record = train_heads(
                *heads,
                views,
                PairsAndTeacher(30.0, divergence(method, options)),
                batch_size=N_PAIRS,
                batch_size_unpaired=(n, n),
                dtype=resolve_precision("auto", device),
                optimizer=OPTIMIZERS["adamw"],
                learning_rate=5e-4,
                weight_decay=1e-5,
                warmup=0.1,
                max_iter=options.steps,
                n_iter_no_change=options.steps,
                validation_interval=options.steps,
                seed=0,
                announce=lambda: None,
                report=note_time,
            )
    except torch.OutOfMemoryError:
        return None
    if record.ended != "completed":
        return None
    return {"seconds": statistics.median(np.diff(times).tolist()), "peak": peak(device) - before}


def allocated(device):
    """Memory held now, in MiB; peaks are counted from here on."""
    if device.type != "cuda":
        return klot.memory_from_here()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def peak(device):
    if device.type != "cuda":
        return klot.memory("VmHWM")
    return torch.cuda.max_memory_allocated(device) / 2**20


def divergence(method, options):
    """A function of unit rows of student and teacher, in one of the three ways."""
    from skalign._core.klot import klot as dense
    from skalign._core.klot import klot_from_features as features

    def by_skalign(F, G, F_teacher, G_teacher, same_rows):
        views = (F, G, F_teacher, G_teacher) if method == "features" else (F @ G.T, F_teacher @ G_teacher.T)
        return (features if method == "features" else dense)(*views, *options.epsilons, tol=options.tol)[0]

    def eager(F, G, F_teacher, G_teacher, same_rows):
        K = F.detach() @ G.detach().T
        T = klot.plan(*klot.log_domain(F_teacher @ G_teacher.T, options.epsilons[1]))
        P = klot.plan(*klot.log_domain(K, options.epsilons[0]))
        dK = P.sub_(T).div_(options.epsilons[0])
        # the gradients in F and in G, as those of a scalar
        return (dK @ G.detach() * F).sum() + (dK.T @ F.detach() * G).sum()

    return eager if method == "eager" else by_skalign


def recall(precision, seed, options):
    """The mean of the six recalls on rows never seen, in percent, of one fit."""
    from skalign import SOTAlign
    from skalign.datasets import make_two_views
    from skalign.metrics import mean_recall

    data = make_two_views(100, 500, 500, 500, n_features_x=48, n_features_y=32, noise=0.3, random_state=seed)
    aligner = SOTAlign(precision=precision, device=options.device, random_state=seed)
    aligner.fit(data.X, data.Y, data.paired_idx)
    return 100 * mean_recall(*aligner.transform(data.X_test, data.Y_test), data.test_idx)


def print_steps(rows, options):
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"\n{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(
        f"{options.columns} columns, epsilons {options.epsilons[0]:g} and {options.epsilons[1]:g}, tol {options.tol:g}\n"
    )
    print("| n = m | KLOT | seconds a step | x eager | peak GiB | x eager |")
    print("|---" * 6 + "|")
    eager = {n: found for n, method, found in rows if method == "eager"}
    for n, method, found in rows:
        cells = ["out of memory", "", "", ""]
        if found:
            base = eager.get(n)
            ratios = [f"{found[key] / base[key]:.3g}" if base else "" for key in ("seconds", "peak")]
            cells = [f"{found['seconds']:.3g}", ratios[0], f"{found['peak'] / 1024:.3g}", ratios[1]]
        print("| " + " | ".join(map(str, (n, method, *cells))) + " |")


def print_precisions(recalls):
    print("\n| heads | mean recall | less that of float32 |\n|---|---|---|")
    for name, found in recalls.items():
        differences = np.subtract(found, recalls["float32"])
        cells = [f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" for values in (found, differences)]
        print(f"| {name} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
