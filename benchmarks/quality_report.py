"""Tables and a picture from the results of `quality.py`.

    python benchmarks/quality_report.py quality.jsonl --plot quality.png --readme README.md

Prints Markdown: every method, then SOTAlign against the best other method, against its own teacher, and the share of the gap
to all pairs that it closes. ``--readme`` writes the short table between the two marks in that file. Spreads are standard
deviations over seeds, errors of differences are standard errors of paired differences.
"""

import argparse
import itertools
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from quality import COLUMNS, METHODS, SETS, read_results

OURS = "SOTAlign"
OWN = [name for name in METHODS if name.startswith(OURS) or name.endswith("CSLS")]  # no published rivals
IN_README = ["SAIL, tuned", "Procrustes, tuned", "CCA, tuned", "CCA, reg auto, CSLS", OURS]
README_PAIRS = [50, 100, 200, 500, 1000, 2000]
MARKS = "<!-- quality: written by benchmarks/quality_report.py -->", "<!-- end of quality -->"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files that quality.py wrote")
    parser.add_argument("--plot", type=Path, help="draw recall and FOSCTTM against pairs into this file")
    parser.add_argument("--readme", type=Path, help="write the short table into this file")
    options = parser.parse_args()
    results = group(itertools.chain.from_iterable(map(read_results, options.results)))
    for name in SETS:
        if any(key[0] == name for key in results):
            print(f"\n### {name}\n\n" + "\n".join(whole_table(results, name)))
            print("\n" + "\n".join(comparison(results, name)))
    if options.plot:
        draw(results, options.plot)
    if options.readme:
        update(options.readme, "\n".join(short_table(results)))


def group(results):
    """Runs of each (set, pairs, method), by seed."""
    grouped = defaultdict(dict)
    for result in results:
        grouped[result["set"], result["pairs"], result["method"]][result["seed"]] = result
    return grouped


def values(results, name, n_pairs, method, metric="mean_recall"):
    """One number a seed, in percent."""
    return {seed: 100 * run[metric] for seed, run in sorted(results.get((name, n_pairs, method), {}).items())}


def spread(numbers, digits=1):
    numbers = list(numbers)
    deviation = np.std(numbers, ddof=min(1, len(numbers) - 1))
    return f"{np.mean(numbers):.{digits}f} ± {deviation:.{digits}f}"


def whole_table(results, name):
    yield "| pairs | method | seeds | six recalls | X→Y R@1/5/10 | Y→X R@1/5/10 | FOSCTTM | seconds a fit |"
    yield "|---|---|---|---|---|---|---|---|"
    for n_pairs, method in itertools.product(SETS[name][1], METHODS):
        runs = list(results.get((name, n_pairs, method), {}).values())
        if runs:
            recalls = [f"{100 * np.mean([run[column] for run in runs]):.1f}" for column in COLUMNS]
            ways = " | ".join(" / ".join(recalls[way : way + 3]) for way in (0, 3))
            mean, foscttm = (spread(100 * run[metric] for run in runs) for metric in ("mean_recall", "foscttm"))
            seconds = np.median([run["seconds"] for run in runs])
            yield f"| {n_pairs} | {method} | {len(runs)} | {mean} | {ways} | {foscttm} | {seconds:.1f} |"


def comparison(results, name):
    """SOTAlign against the best published rival, its teacher and the same with all pairs, by the set's own criterion."""
    metric = SETS[name][2]
    sign = -1 if metric == "foscttm" else 1
    rivals = [method for method in METHODS if method not in OWN]
    oracles = [values(results, name, max(SETS[name][1]), method, metric).values() for method in METHODS]
    oracle = max((np.mean(list(numbers)) for numbers in oracles if numbers), default=np.nan)
    yield f"| pairs | {metric} of SOTAlign | best other | lead | lead, relative | own teacher | over it | gap closed |"
    yield "|---|---|---|---|---|---|---|---|"
    for n_pairs in SETS[name][1]:
        ours = values(results, name, n_pairs, OURS, metric)
        found = {m: v for m in rivals if set(v := values(results, name, n_pairs, m, metric)) >= set(ours)}
        if not ours or not found:
            continue
        best = max(found, key=lambda method: sign * np.mean(list(found[method].values())))
        other = np.array([found[best][seed] for seed in ours])
        mine = np.array(list(ours.values()))
        teacher = [100 * results[name, n_pairs, OURS][seed]["teacher"][metric] for seed in ours]
        lead = sign * (mine.mean() - other.mean())
        gap = f"{lead / (oracle - other.mean()):.2f}" if name == "flickr8k" and oracle > other.mean() else ""
        cells = [n_pairs, spread(mine), f"{best}: {spread(other)}", with_error(sign * (mine - other))]
        cells += [f"{100 * lead / other.mean():+.0f} %", spread(teacher), with_error(sign * (mine - teacher)), gap]
        yield "| " + " | ".join(map(str, cells)) + " |"


def with_error(differences):
    return f"{differences.mean():+.2f} ± {differences.std(ddof=min(1, len(differences) - 1)) / len(differences) ** 0.5:.2f}"


def short_table(results):
    yield "| pairs | " + " | ".join(f"`{OURS}()`" if method == OURS else method for method in IN_README) + " |"
    yield "|---" * (1 + len(IN_README)) + "|"
    for n_pairs in README_PAIRS:
        found = [values(results, "flickr8k", n_pairs, method) for method in IN_README]
        cells = [spread(numbers.values()) if numbers else "" for numbers in found]
        cells[IN_README.index(OURS)] = f"**{cells[IN_README.index(OURS)]}**"
        yield f"| {n_pairs} | " + " | ".join(cells) + " |"


def update(file, table):
    before, after = (re.escape(mark) for mark in MARKS)
    text, count = re.subn(f"({before}\n).*?({after})", lambda m: f"{m[1]}{table}\n{m[2]}", file.read_text(), flags=re.S)
    if count != 1:
        raise ValueError(f"Expected the two marks {MARKS} once in {file}, found them {count} times.")
    file.write_text(text)


def draw(results, file):
    import matplotlib.pyplot as plt

    names = [name for name in SETS if any(key[0] == name for key in results)]
    figure, rows = plt.subplots(2, len(names), figsize=(4 * len(names), 7), squeeze=False, layout="constrained")
    for column, name in enumerate(names):
        for ax, metric in zip(rows[:, column], ("mean_recall", "foscttm"), strict=True):
            for method in METHODS:
                found = {n: v for n in SETS[name][1] if (v := list(values(results, name, n, method, metric).values()))}
                if found:
                    means, deviations = zip(*((np.mean(v), np.std(v)) for v in found.values()), strict=True)
                    style = {"color": "k", "linewidth": 2.5} if method == OURS else {"alpha": 0.8}
                    ax.errorbar(list(found), means, deviations, label=method, capsize=2, **style)
            ax.set(xscale="log", xlabel="pairs", ylabel=f"{metric}, %", title=name)
    rows[0, 0].legend(fontsize="x-small")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
