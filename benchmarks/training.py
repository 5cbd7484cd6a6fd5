"""A step of SOTAlign with skalign's KLOT and with the plain loop it is published with: time a step, and retrieval.

    python benchmarks/training.py --data FOLDER --steps 10
    python benchmarks/training.py --data FOLDER --steps 200 --batch 512

500 pairs of `train` (data and draw as in quality.py), all unpaired images and as many of the unpaired captions a step
(2,750 each on Flickr8k) or a batch of them, `SOTAlignTransformer` at its defaults but for the steps, a fixed ridge
and, so that the plain loop has what it was published with, epsilons 0.05 and 0.005. Both runs draw the same batches;
the means of the six recalls on `dev` should agree.
"""

import argparse
import time
from pathlib import Path

import klot
import quality

from skalign import CCATeacher, SOTAlignTransformer
from skalign._core import divergences
from skalign.metrics import retrieval_report

EPSILONS = (0.05, 0.005)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the folder flickr8k_mnv2_minilm")
    parser.add_argument("--pairs", type=int, default=500, help="number of pairs")
    parser.add_argument("--steps", type=int, default=10, help="training steps of either run")
    parser.add_argument("--batch", type=int, help="unpaired rows of either view a step; default as many as images")
    parser.add_argument("--seed", type=int, default=0, help="draws the split and the batches")
    options = parser.parse_args()
    split = quality.draw_flickr8k(options.data, options.pairs, options.seed)
    seconds = {}
    for name, function in (("skalign", divergences.klot), ("plain loop", plain_klot)):
        divergences.klot = function
        seconds[name], recall = train(split, options)
        print(f"{name:12} {seconds[name]:8.2f} s a step   six recalls {100 * recall:.2f}", flush=True)
    print(f"{seconds['plain loop'] / seconds['skalign']:.1f} times as fast a step")


def train(split, options):
    """Seconds a step (the fit less one of a single step, after another to warm up) and the mean of the six recalls."""
    times = []
    for max_iter in (1, 1, options.steps + 1):
        aligner = SOTAlignTransformer(
            CCATeacher(reg=0.01),
            epsilon=EPSILONS[0],
            epsilon_teacher=EPSILONS[1],
            batch_size_unpaired=options.batch or len(split["pools"]["X_unpaired"]),
            max_iter=max_iter,
            random_state=options.seed,
        )
        start = time.perf_counter()
        aligner.fit(*split["pairs"], **split["pools"])
        times.append(time.perf_counter() - start)
    X, Y, matches = split["test"]
    return (times[2] - times[1]) / options.steps, retrieval_report(*aligner.transform(X, Y), matches)["mean_recall"]


def plain_klot(K, K_teacher, epsilon, epsilon_teacher, **_):
    """KLOT by 100 log-domain iterations a plan: value with the explicit gradient, and what the estimator asks of a plan."""
    P, T = (klot.plan(*klot.log_domain(Z.detach(), e)) for Z, e in ((K, epsilon), (K_teacher, epsilon_teacher)))
    value = ((P - T) / epsilon * K).sum()  # its gradient is that of KLOT
    plan = argparse.Namespace(error=klot.marginal_error(T), converged=True, g=None)
    return value, plan, plan


if __name__ == "__main__":
    main()
