"""On Ray: the same parts and the same bits as on one machine, whoever is killed.

A run costs half a minute on two busy processors, nearly all of it actors that start: one run of each kind is not long.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from data_sets import KILL_ROWS, KILLS, classifier, digests, expected, scored, sequences, table
from test_docs import example

import fastlstm
from fastlstm.errors import FastLSTMError, InputError
from fastlstm.scoring.cluster import score_parts_on_ray
from fastlstm.scoring.parts import OutputFolder
from fastlstm.scoring.progress import Progress

COUNT = KILL_ROWS
PART = COUNT // 80
RUNS = max(1, KILLS // 2)
"""Of each test that kills: half for workers, half for drivers."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two processors; the address that other drivers reach it at."""
    with pytest.MonkeyPatch.context() as patch:  # workers find the package where this process does
        here = os.path.dirname(os.path.dirname(fastlstm.__file__))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))
        context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield context.address_info["address"]
        ray.shutdown()


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def rows():
    return sequences(COUNT, longest=60)


@pytest.fixture(scope="module")
def data(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    pq.write_table(table(rows), path, row_group_size=333)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model, data):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    fastlstm.score(model, data, out, part_rows=PART)
    return digests(out)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_dataset_is_scored_by_any_number_of_actors(workers, cluster, model, rows):
    outputs = expected(model, rows[:300])  # compiles, so that actors do not
    dataset = ray.data.from_arrow(table(rows[:300])).repartition(7).materialize()
    found = fastlstm.ray.score(dataset, model, {"input": "x"}, workers=workers, batch_rows=64).to_pandas()
    found = found.sort_values("id")
    assert [list(map(float, output)) for output in found["output"]] == outputs
    assert found["id"].tolist() == list(range(300))
    assert found["fastlstm_error"].isna().all()


@pytest.mark.long
def test_parts_are_those_of_one_machine_and_a_rerun_has_nothing_to_do(cluster, tmp_path, model, data, undisturbed):
    out = tmp_path / "out"
    summary = fastlstm.score(model, data, out, part_rows=PART, ray="auto", workers=2)
    assert (summary.rows, summary.scored_now, summary.rejected) == (COUNT, COUNT, 0)
    assert digests(out) == undisturbed
    assert fastlstm.score(model, data, out, part_rows=PART, ray="auto").scored_now == 0
    assert fastlstm.score(model, data, out, part_rows=PART).scored_now == 0


@pytest.mark.long
def test_what_a_worker_refuses_is_told_by_the_driver(cluster, tmp_path, model):
    nested = [[[0.0, 1.0, 2.0]]] * 40 + [None]
    column = pa.array(nested, pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table({"x": column}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="Row 40 cannot be scored: 'x': null in place of a sequence"):
        fastlstm.score(
            model, tmp_path / "rows.parquet", tmp_path / "out", part_rows=10, ray="auto", workers=1, on_error="stop"
        )


class _Deadly:
    """What a worker does not survive."""

    def __init__(self, model) -> None:
        self.model = model

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.long
def test_a_run_ends_whose_workers_all_do(cluster, tmp_path, model, data):
    output = OutputFolder(tmp_path / "out", {})
    with pytest.raises(FastLSTMError, match="5 workers were lost while they began; the last one: "):
        score_parts_on_ray(
            _Deadly(model), data, output, set(), COUNT, PART, 1, 1 << 30, "aside", "auto", Progress(COUNT)
        )


@pytest.mark.long
def test_the_example_of_the_documentation(cluster, tmp_path, monkeypatch, model, rows):
    folder = tmp_path / "rows"
    folder.mkdir()
    model.save(tmp_path / "model.fastlstm")
    pq.write_table(table(rows[:100]).rename_columns(["id", "readings"]), folder / "0.parquet")
    monkeypatch.chdir(tmp_path)
    code = example("ray.data").replace("rows/", str(folder)).replace("scores/", str(tmp_path / "scores"))
    code = code.replace("model.fastlstm", str(tmp_path / "model.fastlstm"))
    exec(code.replace("workers=2", "workers=1"), {})  # of two processors one is left for reading
    found = pq.read_table(tmp_path / "scores").sort_by("id")
    assert found.column("output").to_pylist() == expected(model, rows[:100])


def test_rows_in_memory_are_refused(tmp_path, model):
    with pytest.raises(InputError, match="On Ray the input is Parquet files"):
        fastlstm.score(model, table([]), tmp_path / "out", ray="auto")


def _parts(out) -> int:
    return len(list(out.glob("part-*")))


def test_a_killed_worker_is_replaced_and_a_rerun_has_nothing_to_do(cluster, tmp_path, model, data, undisturbed):
    draw = random.Random(KILLS)
    for number in range(RUNS):
        out, least, killed = tmp_path / f"out{number}", draw.randrange(60), []

        def kill(out=out, least=least, killed=killed):
            while _parts(out) < least:
                time.sleep(0.002)
            time.sleep(draw.random() * 0.01)
            workers = [p for p in psutil.Process().children(recursive=True) if _is_at_work(p)]
            for process in draw.sample(workers, min(1, len(workers))):
                process.kill()
                killed.append(process.pid)

        killer = threading.Thread(target=kill)
        killer.start()
        summary = fastlstm.score(model, data, out, part_rows=PART, ray="auto", workers=1 + number % 2)
        killer.join()
        assert killed
        assert (summary.rows, summary.scored_now) == (COUNT, COUNT)
        _settle(out)
        assert digests(out) == undisturbed
        assert scored(out).column("id").to_pylist() == list(range(COUNT))
        assert fastlstm.score(model, data, out, part_rows=PART, ray="auto").scored_now == 0
        shutil.rmtree(out)


def _is_at_work(process) -> bool:
    try:
        return "_PartActor" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def _settle(out) -> None:
    """Remove what a killed worker was writing, as the next run does."""
    shutil.rmtree(out / "_aside", ignore_errors=True)


@pytest.mark.long
def test_a_killed_driver_leaves_what_the_next_one_goes_on_with(cluster, tmp_path, model, data, undisturbed):
    saved, draw = tmp_path / "model.fastlstm", random.Random(KILLS)
    model.save(saved)
    for number in range(RUNS):
        out, least = tmp_path / f"out{number}", draw.randrange(60)
        code = "import sys; from fastlstm.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "score", saved, data, "-o", out, "--part-rows", PART, "--ray", cluster]
        driver = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE)
        while driver.poll() is None and _parts(out) < least:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.01)
        driver.send_signal(signal.SIGKILL)
        error = driver.communicate()[1].decode()
        assert driver.returncode == -signal.SIGKILL, error
        summary = fastlstm.score(model, data, out, part_rows=PART, ray="auto" if number % 2 else None)
        assert summary.rows == COUNT
        assert summary.scored_now < COUNT or not least
        while any(map(_is_at_work, psutil.Process().children(recursive=True))):
            time.sleep(0.05)  # the killed driver's workers may have been writing the same parts with the same bytes
        _settle(out)
        assert digests(out) == undisturbed
        assert scored(out).column("id").to_pylist() == list(range(COUNT))
        shutil.rmtree(out)
