"""The benchmarks on small data: they keep their own protocols, and their tables hold what they computed."""

import argparse
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skalign.datasets import load_embeddings, make_two_views
from skalign.metrics import retrieval_report


def benchmark(name):
    file = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quality():
    return benchmark("quality")


@pytest.fixture
def folder(tmp_path):
    """Flickr8k of 100 images with two captions each, 60 to train on; and texts from elsewhere."""
    views = make_two_views(100, 0, 0, 1, random_state=0)
    for name in ("flickr8k_mnv2_minilm", "coco_captions_minilm"):
        (tmp_path / name).mkdir()
    np.savez(
        tmp_path / "flickr8k_mnv2_minilm" / "data.npz",
        image=views.X,
        text=np.repeat(views.Y, 2, axis=0),
        text_image=np.repeat(np.arange(100), 2),
        train=np.arange(60),
        dev=np.arange(60, 100),
    )
    np.savez(tmp_path / "coco_captions_minilm" / "data.npz", text=views.Y[:7] + 1)
    return tmp_path


def test_no_unpaired_image_has_its_caption_among_the_unpaired(quality, folder):
    split = quality.draw_flickr8k(folder, n_pairs=20, seed=3)
    stored = load_embeddings(folder / "flickr8k_mnv2_minilm")

    def owners(rows, view):
        return {int(np.flatnonzero((view.astype(np.float32) == row).all(axis=1))[0]) for row in rows}

    paired = owners(split["pairs"][0], stored.image)
    images = owners(split["pools"]["X_unpaired"], stored.image)
    captions = {row // 2 for row in owners(split["pools"]["Y_unpaired"], stored.text)}
    assert len(paired) == len(images) == len(captions) == 20
    assert not (paired & images or paired & captions or images & captions)
    assert owners(split["test"][0], stored.image) == set(range(60, 100))
    assert owners(split["validation"][0], stored.image) <= images
    other = quality.draw_flickr8k_coco(folder, n_pairs=20, seed=3)
    assert len(other["pools"]["Y_unpaired"]) == 7
    assert_allclose(other["pairs"][1], split["pairs"][1])


def test_with_all_pairs_some_are_kept_back_for_tuning(quality, folder, monkeypatch):
    monkeypatch.setattr(quality, "N_VALIDATION", 15)
    split = quality.draw_flickr8k(folder, n_pairs=60, seed=0)
    assert split["pools"] == {}
    assert len(split["pairs"][0]) == 60
    tuning, held = ({tuple(row) for row in rows} for rows in (split["tuning_pairs"][0], split["validation"][0]))
    assert (len(tuning), len(held)) == (45, 15)
    assert not tuning & held


def test_runs_are_kept_and_not_repeated_and_the_report_holds_them(quality, folder, monkeypatch, capsys):
    results, readme = folder / "results.jsonl", folder / "README.md"
    methods = ["--methods", "CCA, paper", "CCA, tuned", "SOTAlign"]
    arguments = ["--data", str(folder), "--results", str(results), "--sets", "flickr8k", "--pairs", "50", *methods]
    monkeypatch.setattr(sys, "argv", ["quality.py", *arguments, "--seeds", "1"])
    quality.main()
    first = results.read_text()
    assert len(first.splitlines()) == 3
    monkeypatch.setattr(sys, "argv", ["quality.py", *arguments, "--seeds", "2"])
    quality.main()
    assert "3 runs to do, 3 done before" in capsys.readouterr().out
    assert results.read_text().startswith(first)
    runs = [json.loads(line) for line in results.read_text().splitlines()]
    recalls = [100 * run["mean_recall"] for run in runs if run["method"] == "SOTAlign"]
    assert len(recalls) == 2
    assert all("mean_recall" in run["teacher"] for run in runs if run["method"] == "SOTAlign")

    monkeypatch.syspath_prepend(Path(quality.__file__).parent)
    report = benchmark("quality_report")
    tables = folder / "RESULTS.md"
    for file in (readme, tables):
        file.write_text("before\n" + "\n".join(report.MARKS) + "\nafter\n")
    files = ["--readme", str(readme), "--tables", str(tables), "--plot", str(folder / "quality.png")]
    monkeypatch.setattr(sys, "argv", ["quality_report.py", str(results), *files])
    report.main()
    cell = f"{np.mean(recalls):.1f} ± {np.std(recalls, ddof=1):.1f}"
    printed = capsys.readouterr().out
    assert f"| 50 | SOTAlign | 2 | {cell} |" in printed
    assert tables.read_text() == f"before\n{report.MARKS[0]}\n{printed}{report.MARKS[1]}\nafter\n"
    assert f"**{cell}** |\n{report.MARKS[1]}\nafter" in readme.read_text()  # and no row of other counts
    assert (folder / "quality.png").stat().st_size > 10_000


def test_readme_and_results_hold_what_the_kept_runs_say(monkeypatch, quality):
    folder = Path(quality.__file__).parent
    monkeypatch.syspath_prepend(folder)
    report = benchmark("quality_report")
    results = report.group(quality.read_results(folder / "quality.jsonl"))
    for file, table in (
        (folder.parent / "README.md", "\n".join(report.short_table(results))),
        (folder / "RESULTS.md", report.all_tables(results)),
    ):
        assert f"{report.MARKS[0]}\n{table}\n{report.MARKS[1]}\n" in file.read_text()


def test_a_line_that_was_cut_off_is_run_again(quality, tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text('{"a": 1}\n{"a": 2')
    assert quality.read_results(file) == [{"a": 1}]
    assert file.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize(("name", "metric", "better"), [("uci_mfeat", "foscttm", -1), ("emoji", "mean_recall", 1)])
def test_the_report_compares_on_common_seeds_and_knows_what_is_better(monkeypatch, quality, name, metric, better):
    monkeypatch.syspath_prepend(Path(quality.__file__).parent)
    report = benchmark("quality_report")

    def run(method, seed, value):
        other = "mean_recall" if metric == "foscttm" else "foscttm"
        values = {metric: value, other: 0.5}
        return {"set": name, "pairs": 50, "seed": seed, "method": method, **values, "teacher": {metric: 0.30}}

    runs = [run("SOTAlign", seed, 0.30 + better * lead) for seed, lead in enumerate([0.04, 0.06])]
    runs += [run("CCA, tuned", seed, 0.30) for seed in (0, 1)]
    runs += [run("ASIF, tuned", 0, 0.30 - better * 0.1), run("CCA, reg auto, CSLS", 1, 0.30 + better * 0.01)]
    *_, row = report.comparison(report.group(runs), name)
    assert "| CCA, tuned: 30.0 ± 0.0 | +5.00 ± 1.00 | +17 % | +5.00 | +5.00 ± 1.00 |" in row


@pytest.mark.parametrize("name", ["snareseq", "uci_mfeat"])
def test_training_validation_and_test_rows_are_disjoint(quality, tmp_path, name):
    (tmp_path / name).mkdir()
    rows = np.arange(2000.0)[:, None]  # each row is its number
    np.savez(tmp_path / name / "data.npz", rna=rows[:1047], atac=rows[:1047], pix=rows, fou=rows)
    split = quality.SETS[name][0](tmp_path, 50, 0)
    parts = [split["pairs"][0], split["pools"]["X_unpaired"], split["pools"]["Y_unpaired"], split["test"][0]]
    sets = [set(part.ravel()) for part in parts]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert set(split["validation"][0].ravel()) <= sets[1]
    assert_allclose(split["validation"][0], split["validation"][1])


@pytest.mark.filterwarnings("ignore:Sinkhorn did not converge")  # POT's own bound is tighter than ours
@pytest.mark.parametrize("kind", ["clustered", "duplicates", "iid"])
def test_all_ways_to_klot_compute_one_gradient(kind):
    klot = benchmark("klot")
    options = argparse.Namespace(epsilons=[0.5, 0.3], tol=1e-6)
    expected = klot.run_reference([Z.double() for Z in klot.problem(kind, 40, None)], options)[0]
    for run in (klot.run_dense, klot.run_features, klot.run_plain_loop, klot.run_unrolled, klot.run_pot_log):
        found, error = run(klot.problem(kind, 40, None), options)
        assert found.dtype == torch.float32
        assert_allclose(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
        assert error is None or error < 1e-5
    assert klot.run_pot_lazy(klot.problem(kind, 40, None), options)[1] < 1e-5


def test_each_measurement_is_a_process_and_a_line_of_the_table(tmp_path, monkeypatch, capsys):
    klot, output = benchmark("klot"), tmp_path / "out.json"
    arguments = [
        "--kinds",
        "iid",
        "--sizes",
        "70",
        "--methods",
        "dense",
        "features",
        "--rounds",
        "1",
        "--output",
        str(output),
    ]
    monkeypatch.setattr(sys, "argv", ["klot.py", *arguments])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    klot.main()
    dense, features = json.loads(output.read_text())
    assert (dense["method"], features["method"]) == ("dense", "features")
    for row in (dense, features):
        assert row["seconds"] > 0
        assert row["gradient_error"] < 1e-2
    ratio = f"{features['seconds'] / dense['seconds']:.2g}"
    assert f"| iid | 70 | features | 1 | {features['seconds']:.3g} | {ratio} |" in capsys.readouterr().out


def test_a_measurement_that_takes_too_long_is_stopped_and_told_as_longer(monkeypatch, capsys):
    klot, launched = benchmark("klot"), []
    launch = klot.launch

    def recorded(name, *arguments):
        launched.append(name)
        return {"seconds": 0.5, "peak_mib": 1.0} if name == "dense" else launch(name, *arguments)

    monkeypatch.setattr(klot, "launch", recorded)
    arguments = ["--kinds", "iid", "--sizes", "5000", "--methods", "dense", "features", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["klot.py", *arguments, "--limit", "0.01"])
    klot.main()
    assert launched == ["dense", "features", "dense"]
    assert "| iid | 5000 | features | 1 | > 0.01 | > 0.02 | > 0 |  |  |  |" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_every_search_is_measured_once_against_the_exact_rows(tmp_path, monkeypatch, capsys, kind):
    retrieval, results = benchmark("retrieval"), tmp_path / "retrieval.jsonl"
    arguments = ["--gallery", "300", "--queries", "20", "--dim", "8", "--kind", kind, "--results", str(results)]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setattr(sys, "argv", ["retrieval.py", *arguments, "--methods", "exact", "sklearn"])
    retrieval.main()
    first = results.read_text()
    monkeypatch.setattr(sys, "argv", ["retrieval.py", *arguments, "--methods", "exact", "voyager"])
    retrieval.main()
    assert results.read_text().startswith(first)
    assert [json.loads(line)["method"] for line in results.read_text().splitlines()] == ["exact", "sklearn", "voyager"]
    *_, exact, sklearn, voyager = capsys.readouterr().out.strip().splitlines()
    assert exact.startswith("| exact |")
    assert all(line.endswith(" 1.0000 |") for line in (exact, sklearn))
    assert float(voyager.split("|")[-2]) > 0.9


def test_recall_is_the_share_of_the_exact_rows():
    assert benchmark("retrieval").recall_of([[1, 2, 3, 4], [9, 8, 7, 6]], [[4, 3, 2, 0], [6, 7, 8, 9]]) == "0.8750"


def test_hubness_counts_as_the_report_does_and_no_query_is_its_own_reference(folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    hubness, results = benchmark("hubness"), folder / "hubness.jsonl"
    monkeypatch.setattr("quality.N_VALIDATION", 12)
    monkeypatch.setattr(hubness, "N_VALIDATION", 12)
    monkeypatch.setattr(hubness, "ALIGNERS", {name: hubness.ALIGNERS[name] for name in list(hubness.ALIGNERS)[:2]})
    reports, recalls = [], hubness.recalls

    def recorded(aligner, settings, views, references):
        for queries, known in zip(views, references, strict=False):
            assert not {tuple(row) for row in queries} & {tuple(row) for row in known}
        found = recalls(aligner, settings, views, references)
        if not settings:
            report = retrieval_report(*aligner.transform(*views[:2]), views[2])
            assert_allclose(found, [report[f"{way}_r{k}"] for way in ("x_to_y", "y_to_x") for k in (1, 5, 10)])
            reports.append(f"{100 * np.mean(found):.1f}")
        return found

    monkeypatch.setattr(hubness, "recalls", recorded)
    arguments = ["--data", str(folder), "--results", str(results), "--pairs", "20", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["hubness.py", *arguments])
    hubness.main()
    table = capsys.readouterr().out
    assert len(reports) == 2
    for name, value in zip(hubness.ALIGNERS, reports, strict=True):
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} | cosine |")]
        assert f"| {value} |" in row
    before = results.read_text()
    hubness.main()
    assert results.read_text() == before
    assert capsys.readouterr().out == table


def test_a_search_tells_its_best_settings_and_what_they_are_worth(folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    search = benchmark("search")
    monkeypatch.setattr(search, "GRID", {"teacher__reg": [1e-3, 1.0]})  # a ridge that is not to be found takes its time
    arguments = ["--data", str(folder), "--pairs", "30", "--folds", "2", "--max-iter", "2"]
    monkeypatch.setattr(sys, "argv", ["search.py", *arguments])
    search.main()
    printed = capsys.readouterr().out
    assert "30 pairs and 15 unpaired rows of either view" in printed
    cells = [line.split(" | ") for line in printed.splitlines() if line.startswith("| {")]
    assert len(cells) == 2 * 2
    for name, rows in (("search", cells[:2]), ("search, pipeline", cells[2:])):
        means = {row[0].removeprefix("| "): float(row[1].split()[0]) for row in rows}
        best, mean = re.search(rf"^{name}: best (.*) at ([\d.]+), ", printed, re.MULTILINE).groups()
        assert means[best] == float(mean) == max(means.values())
        assert re.search(rf"^\| {name} \| [\d.]+ \|$", printed, re.MULTILINE)


def test_a_table_holds_pairs_first_and_unpaired_rows_of_either_view(folder, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    search = benchmark("search")
    X, Y, mask, test = search.table(argparse.Namespace(data=folder, pairs=30, seed=1))
    stored = load_embeddings(folder / "flickr8k_mnv2_minilm")
    images, captions = (
        [int(np.flatnonzero((view.astype(np.float32) == row).all(axis=1))[0]) // step for row in rows]
        for rows, view, step in ((X, stored.image, 1), (Y, stored.text, 2))
    )
    assert mask.sum() == 30
    assert images[:30] == captions[:30]
    assert not set(images[30:]) & (set(captions) | set(images[:30]))
    assert not set(captions[30:]) & set(images)
    assert len(test[0]) == 40


def test_bridges_tables_hold_what_was_measured_and_runs_are_not_repeated(monkeypatch, tmp_path, capsys):
    bridges = benchmark("bridges")
    monkeypatch.setattr(bridges, "N_TRAIN", 200)
    short = ["--seeds", "1", "--max-iter", "3"]
    monkeypatch.setattr(sys, "argv", ["bridges.py", "planted", "missing", "classes", *short])
    bridges.main()
    cells = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in cells if row[1].strip() in ("clust", "rough")] == ["clust", "rough"]
    kept = {
        row[1].strip(): float(row[2].split("(")[0]) for row in cells if row[1].strip().startswith(("exact", "partial"))
    }
    assert kept["exact"] == 1
    assert kept["partial, mass 1"] < 0.5

    results = tmp_path / "runs.jsonl"
    methods = ["classifier of X, all labels", "ridge", "BridgeFlow"]
    arguments = [
        "real",
        "--sets",
        "digits",
        "--shares",
        "0.05",
        "--results",
        str(results),
        "--methods",
        *methods,
        *short,
    ]
    monkeypatch.setattr(sys, "argv", ["bridges.py", *arguments])
    bridges.main()
    first = results.read_text()
    assert [json.loads(line)["method"] for line in first.splitlines()] == methods
    bridges.main()
    assert results.read_text() == first
    assert f"{json.loads(first.splitlines()[1])['value']:.3f}" in capsys.readouterr().out
    values = {run["method"]: run["value"] for run in map(json.loads, first.splitlines())}
    assert values["classifier of X, all labels"] > values["ridge"] > 0.1


def test_peak_memory_is_measured(monkeypatch, capsys):
    bridges = benchmark("bridges")
    monkeypatch.setattr(sys, "argv", ["bridges.py", "memory", "--worker", "20000", "--max-iter", "2"])
    bridges.main()
    peak, seconds = capsys.readouterr().out.split()
    assert float(peak) < 500
    assert float(seconds) > 0


def test_rows_on_disk_are_measured_beside_rows_in_memory(tmp_path, monkeypatch, capsys):
    out_of_core = benchmark("out_of_core")
    sizes = ["--rows", "0", "--compare-rows", "1100", "--columns", "16", "--pairs", "400", "--max-iter", "3"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["out_of_core.py", "--folder", str(tmp_path), *sizes, "--kinds", "path", "memory", "--rounds", "1"],
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    out_of_core.main()
    X, Y = (np.load(tmp_path / f"{view}_1100_16.npy").astype(np.float32) for view in "XY")
    A, B = (np.load(tmp_path / f"{view}_pairs_16.npy").astype(np.float32) for view in "XY")
    assert len(X) == len(Y) == 1100
    assert np.abs(A.T @ B).mean() > 1.5 * np.abs(X[:400].T @ Y[:400]).mean()  # pairs belong together, the others do not
    table, errors = capsys.readouterr()
    measured = [json.loads(line.replace("'", '"').split(" ", 1)[1]) for line in errors.splitlines() if "{" in line]
    assert all(run["resident"] >= run["anonymous"] > 0.01 and run["step"] > 0 for run in measured)
    ratio = measured[1]["step"] / measured[0]["step"]
    assert f"path: {ratio:.2f} of the throughput of memory a step" in table


def gpu_benchmark(monkeypatch, *arguments):
    """The module, under the name by which its processes import it."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--columns", "16", *arguments])
    return importlib.import_module("gpu")


def test_a_step_is_one_training_step_whichever_way_to_klot(monkeypatch):
    gpu = gpu_benchmark(monkeypatch, "--epsilons", "0.5", "0.3", "--tol", "1e-6", "--steps", "3")
    options, gradients = gpu.parse_arguments(), []
    for method in gpu.METHODS:
        assert gpu.measure(method, 40, options)["seconds"] > 0
        F, G, *teacher = gpu.klot.problem("clustered", 40, None, 16)
        gpu.divergence(method, options)(F.requires_grad_(), G.requires_grad_(), *teacher, False).backward()
        gradients.append(torch.cat([F.grad, G.grad]))
    for gradient in gradients[1:]:
        assert_allclose(gradient, gradients[0], rtol=0, atol=1e-3 * float(gradients[0].abs().max()))


@pytest.mark.slow
def test_steps_and_precisions_stand_in_tables_with_their_ratios(monkeypatch, capsys):
    gpu = gpu_benchmark(monkeypatch, "--sizes", "40", "90", "--steps", "2", "--seeds", "2")
    monkeypatch.setattr(gpu, "DENSE", 50)
    monkeypatch.setattr(gpu, "METHODS", gpu.METHODS[::2])
    monkeypatch.setattr(gpu, "recall", lambda precision, seed, options: 10.0 + seed + (precision == "bfloat16"))
    gpu.main()
    cells = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    eager, features, larger, *precisions = (row for row in cells if row[0] not in ("| n = m", "| heads"))
    assert [row[:2] for row in (eager, features, larger)] == [
        ["| 40", "eager"],
        ["| 40", "features"],
        ["| 90", "features"],
    ]
    assert eager[3] == "1"
    assert float(features[3]) == pytest.approx(float(features[2]) / float(eager[2]), rel=0.02)  # three digits each
    assert larger[3] == ""
    assert precisions == [
        ["| float32", "10.50 ± 0.71", "0.00 ± 0.00 |"],
        ["| bfloat16", "11.50 ± 0.71", "1.00 ± 0.00 |"],
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recall_of_a_precision_is_in_percent(monkeypatch, precision):
    gpu = gpu_benchmark(monkeypatch)
    assert 20 < gpu.recall(precision, 0, gpu.parse_arguments()) < 60  # 0.6 by chance


@pytest.mark.slow  # it starts torchrun
def test_ranks_do_beside_one_process_what_that_does(monkeypatch, capsys):
    distributed = benchmark("distributed")
    sizes = ["--rows", "600", "--columns", "16", "--pairs", "100", "--batch", "150", "--max-iter", "3"]
    monkeypatch.setattr(sys, "argv", ["distributed.py", *sizes])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    distributed.main()
    table = capsys.readouterr().out
    rows = {row.split(" | ")[0].strip("| "): row for row in table.splitlines() if row.startswith("| ")}
    assert {"memory", "step", "fit", "recall"} <= set(rows)
    alone, together = (float(cell.split()[0]) for cell in rows["recall"].split(" | ")[1:3])
    assert abs(alone - together) <= 0.002
    assert float(table.split("loss curves: ")[1]) < 1e-4


def test_sizes_are_measured_beside_what_is_counted(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    sizing = benchmark("sizing")
    small = ["--rows", "600", "--pairs", "30", "--components", "8", "--max-iter", "3"]
    monkeypatch.setattr(sys, "argv", ["sizing.py", "--batches", "512", "--columns", "16", "12", *small])
    sizing.main()
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 512 | 12 |")]
    _, _, _, counted, seconds, flop, iterations = (float(cell) for cell in row.strip("| ").split("|"))
    assert counted == round(sizing.count(600, 12, 8, 512, 30)["peak"] / 1e6)
    assert seconds > 0
    assert iterations >= 2  # a plan of the student and one of the teacher
    assert flop == round(8 * 512 * 8 * (12 + 512) / 1e9, 1)


def test_ranks_share_rows_and_kernel_and_hold_all_of_the_other_view(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    sizing = benchmark("sizing")
    whole, shared = (sizing.count(1e6, 64, 32, 4096, 500, ranks=ranks) for ranks in (1, 8))
    assert shared["kernel"] == whole["kernel"] / 8
    assert shared["host"] == whole["host"] / 8
    assert shared["device"] > whole["device"] / 8
    assert shared["network"] == 4 * 4 * 4096 * 32 > whole["network"] == 0
    monkeypatch.setattr(sys, "argv", ["sizing.py", "--counted"])
    sizing.main()
    assert capsys.readouterr().out.count("\n| 100,000,000 |") == 4
