"""Tables and a picture from the results of `quality.py`.

    python benchmarks/quality_report.py quality.jsonl --plot quality.png --readme README.md --tables benchmarks/RESULTS.md

Makes Markdown: every method, then SOTAlign against the best rival, against CCA with the same hubness correction and
against its own teacher, and the share of the gap to the best method with all pairs that it closes. It is printed, and
``--tables`` writes it, ``--readme`` a short one, between the two marks in that file. The runs behind what stands there
are in `quality.jsonl` beside this. Spreads are standard deviations over seeds, which draw the pairs; all but snareseq
have one test set. Errors are standard errors of paired differences, over the seeds both have.
"""

import argparse
import itertools
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from quality import COLUMNS, METHODS, SETS, read_results

OURS, CORRECTED = "SOTAlign", "CCA, reg auto, CSLS"
RIVALS = [name for name in METHODS if not name.startswith(OURS) and name != CORRECTED]
IN_README = ["SAIL, tuned", "Procrustes, tuned", "CCA, tuned", CORRECTED, OURS]
README_PAIRS = [50, 100, 200, 500, 1000, 2000]
MARKS = "<!-- quality: written by benchmarks/quality_report.py -->", "<!-- end of quality -->"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files that quality.py wrote")
    parser.add_argument("--plot", type=Path, help="draw the README's methods against pairs into this file")
    parser.add_argument("--readme", type=Path, help="write the short table into this file")
    parser.add_argument("--tables", type=Path, help="write all tables into this file")
    options = parser.parse_args()
    results = group(itertools.chain.from_iterable(map(read_results, options.results)))
    tables = all_tables(results)
    print(tables)
    if options.tables:
        update(options.tables, tables)
    if options.plot:
        draw(results, options.plot)
    if options.readme:
        table = list(short_table(results))
        if len(table) == 2:
            parser.error(f"the results hold no run of {OURS} on flickr8k, so {options.readme} is left as it is")
        update(options.readme, "\n".join(table))


def all_tables(results):
    return "\n\n".join(
        "\n".join([f"### {name}\n", *whole_table(results, name), "", *comparison(results, name)])
        for name in SETS
        if any(key[0] == name for key in results)
    )


def group(results):
    """Runs of each (set, pairs, method), by seed."""
    grouped = defaultdict(dict)
    for result in results:
        grouped[result["set"], result["pairs"], result["method"]][result["seed"]] = result
    return grouped


def values(results, name, n_pairs, method, metric="mean_recall"):
    """One number a seed, in percent."""
    return {seed: 100 * run[metric] for seed, run in sorted(results.get((name, n_pairs, method), {}).items())}


def spread(numbers):
    numbers = list(numbers)
    return f"{np.mean(numbers):.1f}" + (f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else "")


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
    """What SOTAlign gains, by the set's own criterion: more recall, or less FOSCTTM."""
    metric = SETS[name][2]
    sign = -1 if metric == "foscttm" else 1
    oracle = max((np.mean(list(v.values())) for m in METHODS if (v := values(results, "flickr8k", 6000, m))), default=0)
    columns = [
        f"{metric} of SOTAlign",
        "best rival",
        "gain",
        "relative",
        f"gain over {CORRECTED}",
        "gain over own teacher",
    ]
    yield "| pairs | seeds | " + " | ".join(columns) + " | gap closed |"
    yield "|---" * (len(columns) + 3) + "|"
    for n_pairs in SETS[name][1]:
        ours = values(results, name, n_pairs, OURS, metric)
        rivals = {method: found for method in RIVALS if (found := values(results, name, n_pairs, method, metric))}
        if not ours or not rivals:
            continue
        best = max(rivals, key=lambda method: sign * np.mean(list(rivals[method].values())))
        corrected = values(results, name, n_pairs, CORRECTED, metric)
        teacher = {seed: 100 * results[name, n_pairs, OURS][seed]["teacher"][metric] for seed in ours}
        gains = gain(ours, rivals[best], sign)
        other = np.mean([rivals[best][seed] for seed in ours if seed in rivals[best]])
        cells = [
            n_pairs,
            len(ours),
            spread(ours.values()),
            f"{best}: {spread(rivals[best].values())}",
            with_error(gains),
        ]
        cells += [f"{100 * np.mean(gains) / other:+.0f} %", with_error(gain(ours, corrected, sign))]
        cells += [with_error(gain(ours, teacher, sign))]
        cells += [f"{np.mean(gains) / (oracle - other):.2f}" if name == "flickr8k" and oracle > other else ""]
        yield "| " + " | ".join(map(str, cells)) + " |"


def gain(ours, others, sign):
    return [sign * (ours[seed] - others[seed]) for seed in ours if seed in others]


def with_error(differences):
    if not differences:
        return ""
    error = f" ± {np.std(differences, ddof=1) / len(differences) ** 0.5:.2f}" if len(differences) > 1 else ""
    return f"{np.mean(differences):+.2f}{error}"


def short_table(results):
    yield "| pairs | " + " | ".join(f"`{OURS}()`" if method == OURS else method for method in IN_README) + " |"
    yield "|---" * (1 + len(IN_README)) + "|"
    for n_pairs in README_PAIRS:
        found = [values(results, "flickr8k", n_pairs, method) for method in IN_README]
        if found[-1]:
            *others, ours = [spread(numbers.values()) if numbers else "" for numbers in found]
            yield f"| {n_pairs} | " + " | ".join([*others, f"**{ours}**"]) + " |"


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
            for method in IN_README:
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
