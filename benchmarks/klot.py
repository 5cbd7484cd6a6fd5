"""KLOT's value and gradient against other ways to get them, side by side: time, memory, accuracy.

    python benchmarks/klot.py --data FOLDER --sizes 1024 2048 4096
    python benchmarks/klot.py --kinds clustered --sizes 32768 --methods features --epsilons 0.1 0.02

Every measurement is a process of its own, once for each number in `--threads`. It repeats its work until five seconds
have passed and tells the median and its peak memory beyond the inputs (Linux). The methods of one problem run one
after the other, `--rounds` times in turn; the medians are printed, and the ratio of each method's time to that of
`dense`. All start from the features, so the dense ones pay for ``K = F @ G.T`` and for carrying the gradient back to F and G.

Kinds of problem, rows of unit length, d = 256: `flickr8k` (two CCA spaces of 500 pairs, as teacher and student; needs
--data as in quality.py), `clustered` (two samples of 64 clusters, which differ in how many rows fell into each),
`duplicates` (rows of 16 prototypes, 0.001 apart), `iid` (Gaussian directions).

Errors are L1 distances of the teacher plan's row and column sums from uniform marginals, and relative L2 distances of dF
from that of a float64 solution to 1e-9 (up to 4,096 rows). GeomLoss needs geomloss and pykeops.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

D = 256
SECONDS = 5  # a measurement is repeated until it took that long, as training repeats its steps
SLOW = {  # rows up to which a method is run unless --methods names it
    "plain loop": 4096,
    "unrolled": 1024,
    "POT log": 2048,
    "POT lazy": 1024,
    "GeomLoss": 4096,
    "GeomLoss online": 1024,
}
WARM_UP = {"features": 3000}  # rows before memory is counted: of fewer, whole plans are kept, and other code is loaded
METHODS = ["dense", "features", "three GEMMs", *SLOW]
KINDS = ["flickr8k", "clustered", "duplicates", "iid"]


def main():
    options = parse_arguments()
    if options.worker:
        return print(json.dumps(work(*options.worker, options)))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, n in itertools.product(options.kinds, options.sizes):
            if n <= 4096:
                launch("reference", kind, n, folder, options, max(options.threads))
            methods = options.methods or [name for name in METHODS if n <= SLOW.get(name, n)]
            found = {case: [] for case in itertools.product(methods, options.threads)}
            for _, ((name, threads), runs) in itertools.product(range(options.rounds), found.items()):
                if None not in runs:  # what was stopped once is not tried again
                    runs.append(launch(name, kind, n, folder, options, threads))
            for (name, threads), runs in found.items():
                results.append({"kind": kind, "n": n, "method": name, "threads": threads, **median(runs)})
                print(results[-1], file=sys.stderr, flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1))
    print_table(results, options)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the folder flickr8k_mnv2_minilm")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096], help="rows of either view")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="kinds of problem")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="which methods to run; default all that end in minutes"
    )
    parser.add_argument(
        "--epsilons", type=float, nargs=2, default=[0.05, 0.005], help="student's and teacher's epsilon"
    )
    parser.add_argument("--tol", type=float, default=1e-4, help="L1 marginal error of skalign and POT")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of each process, in turn")
    parser.add_argument("--limit", type=float, help="seconds after which a measurement is stopped and told as longer")
    parser.add_argument("--output", type=Path, help="write every median to this JSON file")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)  # method, kind, n, folder of the reference
    return parser.parse_args()


def launch(method, kind, n, folder, options, threads):
    """One measurement in a process of its own; None if it was stopped."""
    settings = ["--epsilons", *map(str, options.epsilons), "--tol", str(options.tol), "--threads", str(threads)]
    data = ["--data", str(options.data)] if options.data else []
    command = [sys.executable, __file__, *settings, *data, "--worker", method, kind, str(n), folder]
    env = os.environ | dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], str(threads))
    limit = None if method == "reference" else options.limit
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    if process.returncode:
        raise RuntimeError(f"{method} on {kind}, n = {n}:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def median(runs):
    if None in runs:
        return {"seconds": None}
    return {key: sorted(run[key] for run in runs)[len(runs) // 2] for key in runs[0] if runs[0][key] is not None}


def work(method, kind, n, folder, options):
    """What a process does: build the problem, warm up on a small one, measure once."""
    import numpy as np
    import torch

    torch.set_num_threads(*options.threads)
    views = problem(kind, int(n), options.data)
    run, file = RUNS[method], Path(folder) / f"{kind}{n}.npy"
    if method == "reference":
        np.save(file, run([Z.double() for Z in views], options)[0].numpy())
        return None
    run([Z[: WARM_UP.get(method, 64)] for Z in views], options)
    before, seconds = memory_from_here(), []
    while sum(seconds) < SECONDS:
        views = [Z.detach() for Z in views]
        start = time.perf_counter()
        dF, error = run(views, options)
        seconds.append(time.perf_counter() - start)
    peak = max(0, memory("VmHWM") - before)
    gradient_error = None
    if dF is not None and file.exists():
        expected = torch.from_numpy(np.load(file))
        gradient_error = float((dF.double() - expected).norm() / expected.norm())
    return {"seconds": statistics.median(seconds), "peak_mib": peak, "error": error, "gradient_error": gradient_error}


def memory_from_here():
    """Memory held now, in MiB, without what was freed; the peak is counted anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name):
    """What Linux calls VmRSS, memory held now, or VmHWM, its peak, in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1024


def problem(kind, n, data, d=D):
    """Student's and teacher's features F, G, F_teacher, G_teacher."""
    import torch

    if kind == "flickr8k":
        return flickr8k(n, data)
    generator = torch.Generator().manual_seed(0)

    def unit_normal(rows):
        return torch.nn.functional.normalize(torch.randn(rows, d, generator=generator), dim=1)

    views = []
    for noise in (0.7, 0.7, 0.6, 0.6):
        if kind == "iid":
            views.append(unit_normal(n))
            continue
        if len(views) % 2 == 0:  # both views of student or teacher share their centres
            centres = unit_normal(64 if kind == "clustered" else 16)
        noise = noise if kind == "clustered" else 0.001
        rows = centres[torch.randint(len(centres), (n,), generator=generator)] + noise * unit_normal(n)
        views.append(torch.nn.functional.normalize(rows, dim=1))
    return views


def flickr8k(n, data):
    """Images and captions of other images as far as there are, in two CCA spaces fitted on 500 pairs."""
    import numpy as np
    import torch

    from skalign import CCATeacher
    from skalign.datasets import load_embeddings

    stored = load_embeddings(data / "flickr8k_mnv2_minilm")
    order = np.random.default_rng(0).permutation(len(stored.image))
    first_caption = np.unique(stored.text_image, return_index=True)[1]
    pairs, images, texts = order[:500], order[-n:], first_caption[order[500 : 500 + n]]
    views = []
    for settings in ({"reg": 0.01}, {"reg": 0.1, "power": 0.0}):
        space = CCATeacher(D, **settings).fit(stored.image[pairs], stored.text[first_caption[pairs]])
        views += space.transform(stored.image[images], stored.text[texts])
    return [torch.from_numpy(np.ascontiguousarray(Z, dtype=np.float32)) for Z in views]


def run_dense(views, options):
    from skalign.losses import klot

    F, G = (Z.requires_grad_() for Z in views[:2])
    klot(F @ G.T, views[2] @ views[3].T, *options.epsilons, tol=options.tol).backward()
    return F.grad, None


def run_features(views, options):
    from skalign.losses import klot_from_features

    F, G = (Z.requires_grad_() for Z in views[:2])
    klot_from_features(F, G, *views[2:], *options.epsilons, tol=options.tol).backward()
    return F.grad, None


def run_reference(views, options):
    from skalign.losses import klot

    F = views[0].requires_grad_()
    klot(F @ views[1].T, views[2] @ views[3].T, *options.epsilons, tol=1e-9, max_iter=20_000).backward()
    return F.grad, None


def run_three_gemms(views, options):
    """The floor: form K, carry a gradient back to both sides."""
    carried_back(views[0] @ views[1].T, *views[:2])
    return None, None


def run_plain_loop(views, options):
    """100 log-domain iterations each, both plans dense, explicit gradient: how KLOT was published."""
    F, G = views[:2]
    P, T = (plan(*log_domain(K, epsilon)) for K, epsilon in zip(affinities(views), options.epsilons, strict=True))
    dK = (P - T) / options.epsilons[0]
    return carried_back(dK, F, G), marginal_error(T)


def log_domain(K, epsilon, n_iter=100):
    log_a, log_b = -math.log(K.shape[0]), -math.log(K.shape[1])
    g = K.new_zeros(K.shape[1])
    for _ in range(n_iter):
        f = epsilon * (log_a - ((K + g) / epsilon).logsumexp(dim=1))
        g = epsilon * (log_b - ((K + f[:, None]) / epsilon).logsumexp(dim=0))
    return K, f, g, epsilon


def plan(K, f, g, epsilon):
    return ((K + f[:, None] + g) / epsilon).exp()


def affinities(views):
    return views[0] @ views[1].T, views[2] @ views[3].T


def carried_back(dK, F, G):
    """Gradients of F and G; the first is what is compared."""
    return (dK @ G, dK.T @ F)[0]


def marginal_error(P):
    return sum(float((P.double().sum(dim=dim) - 1 / P.shape[1 - dim]).abs().sum()) for dim in (0, 1))


def run_unrolled(views, options):
    """Autograd through the student's 100 iterations."""
    F, G = (Z.requires_grad_() for Z in views[:2])
    T = plan(*log_domain(views[2] @ views[3].T, options.epsilons[1]))
    K, f, g, epsilon = log_domain(F @ G.T, options.epsilons[0])
    (T * (T.clamp(min=1e-38).log() - (K + f[:, None] + g) / epsilon)).sum().backward()
    return F.grad, marginal_error(T)


def run_pot_log(views, options):
    import ot

    plans = [
        ot.bregman.sinkhorn_log([], [], -K, epsilon, numItermax=2000, stopThr=options.tol / math.sqrt(K.shape[1]))
        for K, epsilon in zip(affinities(views), options.epsilons, strict=True)
    ]  # POT stops at an L2 error, which is below the L1 error by up to the root of the columns
    return carried_back((plans[0] - plans[1]) / options.epsilons[0], *views[:2]), marginal_error(plans[1])


def run_pot_lazy(views, options):
    """Both transport problems; no gradient. The squared distance of unit rows is 2 - 2 K."""
    import ot

    for (F, G), epsilon in zip((views[:2], views[2:]), options.epsilons, strict=True):
        tol = options.tol / math.sqrt(len(G))
        result = ot.solve_sample(F, G, reg=2 * epsilon, lazy=True, max_iter=2000, tol=tol, batch_size=256)
    return None, marginal_error(result.lazy_plan[:])


def run_geomloss(views, options, backend="tensorized"):
    """Both transport problems; no gradient of KLOT. Half the squared distance of unit rows is 1 - K."""
    from geomloss import SamplesLoss

    for (F, G), epsilon in zip((views[:2], views[2:]), options.epsilons, strict=True):
        blur = math.sqrt(epsilon)
        solver = SamplesLoss("sinkhorn", 2, blur=blur, scaling=0.9, debias=False, potentials=True, backend=backend)
        f, g = (potential.flatten() for potential in solver(F, G))
    P = ((F @ G.T - 1 + f[:, None] + g) / epsilon).exp() / (len(F) * len(G))
    return None, marginal_error(P)


def run_geomloss_online(views, options):
    return run_geomloss(views, options, backend="online")


RUNS = {
    "dense": run_dense,
    "features": run_features,
    "reference": run_reference,
    "three GEMMs": run_three_gemms,
    "plain loop": run_plain_loop,
    "unrolled": run_unrolled,
    "POT log": run_pot_log,
    "POT lazy": run_pot_lazy,
    "GeomLoss": run_geomloss,
    "GeomLoss online": run_geomloss_online,
}


def print_table(results, options):
    print(f"\n{platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}")
    print(
        f"epsilons {options.epsilons[0]:g} and {options.epsilons[1]:g}, tol {options.tol:g}, {options.rounds} round(s)\n"
    )
    print(
        "| kind | n = m | method | threads | seconds | x dense | ns an entry | peak MiB | teacher's error | gradient's error |"
    )
    print("|---" * 10 + "|")
    dense = {(row["kind"], row["n"], row["threads"]): row["seconds"] for row in results if row["method"] == "dense"}
    for row in results:
        base = dense.get((row["kind"], row["n"], row["threads"]))
        more, seconds = ("> ", options.limit) if row["seconds"] is None else ("", row["seconds"])
        cells = [row["kind"], row["n"], row["method"], row["threads"], f"{more}{seconds:.3g}"]
        cells += ["" if base is None else f"{more}{seconds / base:.2g}", f"{more}{seconds / row['n'] ** 2 * 1e9:.0f}"]
        cells += [f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""]
        cells += [f"{row[key]:.1e}" if key in row else "" for key in ("error", "gradient_error")]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
