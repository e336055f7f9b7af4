"""Every row once, in its order, with the same bits: for any workers, batches, row groups, and whatever was killed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import KILL_ROWS, KILLS, classifier, digests, expected, rejected, scored, sequences, table

import fastlstm
from fastlstm.errors import FileFormatError, InputError
from fastlstm.scoring import sources
from fastlstm.scoring.scorer import Scorer

COUNT, PART = 700, 64


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def rows():
    return sequences(COUNT)


@pytest.fixture(scope="module")
def data(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    pq.write_table(table(rows), path, row_group_size=150)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model, data):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    fastlstm.score(model, data, out, part_rows=PART)
    return digests(out)


def test_scores_are_those_of_each_row_alone_in_the_order_of_the_input(tmp_path, model, data, rows):
    summary = fastlstm.score(model, data, tmp_path / "out", part_rows=PART)
    found = scored(tmp_path / "out")
    assert (summary.rows, summary.rejected, summary.scored_now) == (COUNT, 0, COUNT)
    assert found.column("id").to_pylist() == list(range(COUNT))
    assert found.column("output").to_pylist() == expected(model, rows)
    label = json.loads(found.schema.metadata[b"fastlstm"])
    assert label["version"] == fastlstm.__version__
    assert len(label["model"]) == 64
    assert label["columns"] == {"input": ["x"]}


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1},
        {"workers": 3, "batch_rows": 5},
        {"workers": 2, "memory": 1 << 16},
        {"batch_frames": 40, "workers": 2},
    ],
    ids=str,
)
def test_files_do_not_depend_on_workers_batches_or_memory(options, tmp_path, model, data, undisturbed):
    fastlstm.score(model, data, tmp_path / "out", part_rows=PART, **options)
    assert digests(tmp_path / "out") == undisturbed


def test_outputs_are_no_dictionaries_of_their_values(tmp_path, model, data):
    fastlstm.score(model, data, tmp_path / "out")
    group = pq.read_metadata(tmp_path / "out" / "part-00000000.parquet").row_group(0)
    columns = {c.path_in_schema: c.has_dictionary_page for c in map(group.column, range(group.num_columns))}
    assert [path for path, has in columns.items() if not has] == ["output.list.element"]
    assert any(columns.values())


@pytest.mark.parametrize("row_group", [1, 37, COUNT])
def test_files_do_not_depend_on_row_groups(row_group, tmp_path, model, rows, undisturbed):
    pq.write_table(table(rows), tmp_path / "rows.parquet", row_group_size=row_group)
    fastlstm.score(model, tmp_path / "rows.parquet", tmp_path / "out", part_rows=PART)
    assert digests(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("threads", [1, 2])
def test_other_sources_of_the_same_rows_give_the_same_bytes(threads, tmp_path, rows, undisturbed):
    import polars as pl

    model, whole = classifier(threads=threads), table(rows)
    fastlstm.score(model, whole, tmp_path / "table", part_rows=PART)
    assert digests(tmp_path / "table") == undisturbed
    fastlstm.score(model, pl.from_arrow(whole), tmp_path / "polars", part_rows=PART)
    assert scored(tmp_path / "polars").equals(scored(tmp_path / "table"))
    fastlstm.score(model, whole.to_pandas().assign(x=whole["x"].to_pylist()), tmp_path / "pandas", part_rows=PART)
    assert scored(tmp_path / "pandas").equals(scored(tmp_path / "table"))
    batches = pa.RecordBatchReader.from_batches(whole.schema, whole.to_batches(max_chunksize=11))
    fastlstm.score(model, batches, tmp_path / "reader", part_rows=PART)
    assert digests(tmp_path / "reader") == undisturbed


def test_a_folder_of_files_is_read_in_the_order_of_names(tmp_path, model, rows, undisturbed):
    whole, folder = table(rows), tmp_path / "data"
    folder.mkdir()
    (folder / "_ignored.txt").write_text("")
    for number, (first, last) in enumerate([(0, 200), (200, 200), (200, 201), (201, COUNT)]):
        pq.write_table(whole.slice(first, last - first), folder / f"{number}.parquet")
    fastlstm.score(model, folder, tmp_path / "out", part_rows=PART)
    assert digests(tmp_path / "out") == undisturbed


def test_a_rerun_does_what_is_missing_and_no_more(tmp_path, model, data, undisturbed):
    out = tmp_path / "out"
    fastlstm.score(model, data, out, part_rows=PART)
    for number in (2, 3, 10):
        (out / f"part-{number:08d}.parquet").unlink()
    (out / "_aside").mkdir()
    (out / "_aside" / "left").write_text("half a part")
    summary = fastlstm.score(model, data, out, part_rows=PART, resume=True)
    assert summary.scored_now == 2 * PART + (COUNT - 10 * PART)
    assert summary.rows == COUNT
    assert digests(out) == undisturbed
    assert fastlstm.score(model, data, out, part_rows=PART).scored_now == 0


CHANGED = {
    "model": {"model": classifier(units=9)},
    "part_rows": {"part_rows": 100},
    "max_length": {"max_length": 100},
    "kept": {"keep": []},
    "outputs": {"outputs": {"output": "score"}},
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_changed_model_or_setting_is_refused_and_nothing_changes(what, tmp_path, model, data):
    out = tmp_path / "out"
    fastlstm.score(model, data, out, part_rows=PART)
    (out / "part-00000000.parquet").unlink()
    before = digests(out)
    options = {"model": model, "part_rows": PART, **CHANGED[what]}
    with pytest.raises(InputError, match=f"was begun with another {what}: "):
        fastlstm.score(options.pop("model"), data, out, **options)
    assert digests(out) == before


def test_a_changed_input_is_refused(tmp_path, model, rows):
    path, out = tmp_path / "rows.parquet", tmp_path / "out"
    pq.write_table(table(rows), path)
    fastlstm.score(model, path, out, part_rows=PART)
    pq.write_table(table(rows[::-1]), path)
    with pytest.raises(
        InputError, match=r'was begun with another input: \["rows.parquet", .* then, \["rows.parquet", '
    ):
        fastlstm.score(model, path, out, part_rows=PART)
    pq.write_table(table(rows), path)
    pq.write_table(table(rows), tmp_path / "more.parquet")
    with pytest.raises(InputError, match=r'another input: "none" then, \["more.parquet", '):
        fastlstm.score(model, [path, tmp_path / "more.parquet"], out, part_rows=PART)
    with pytest.raises(InputError, match="holds a run already"):
        fastlstm.score(model, path, out, part_rows=PART, resume=False)
    with pytest.raises(InputError, match=r"no run in .* to go on with"):
        fastlstm.score(model, path, tmp_path / "other", resume=True)
    with pytest.raises(InputError, match="holds something else already"):
        fastlstm.score(model, path, tmp_path)


def test_a_stream_that_grew_is_not_taken_for_the_old_one(tmp_path, model, rows):
    def reader(count):
        whole = table(rows[:count])
        return pa.RecordBatchReader.from_batches(whole.schema, whole.to_batches())

    fastlstm.score(model, reader(100), tmp_path / "out", part_rows=PART)
    assert fastlstm.score(model, reader(100), tmp_path / "out", part_rows=PART).rows == 100
    with pytest.raises(InputError, match="The input has changed"):
        fastlstm.score(model, reader(120), tmp_path / "out", part_rows=PART)


def test_rows_that_cannot_be_scored_are_kept_with_number_and_reason(tmp_path, model, rows):
    nested = [row.tolist() for row in rows[:200]]
    nested[3], nested[70], nested[150] = None, [[1.0, 2.0]], []
    source = pa.table({"key": [f"k{i}" for i in range(200)], "x": pa.array(nested, pa.list_(pa.list_(pa.float32())))})
    summary = fastlstm.score(model, source, tmp_path / "out", part_rows=PART)
    assert (summary.rows, summary.rejected) == (200, 3)
    assert rejected(tmp_path / "out") == [
        {"row": 3, "reason": "'x': null in place of a sequence", "key": "k3"},
        {"row": 70, "reason": "'x': step 0: 2 values where the model takes 3", "key": "k70"},
        {"row": 150, "reason": "'x': a sequence without steps", "key": "k150"},
    ]
    left = [i for i in range(200) if i not in (3, 70, 150)]
    assert scored(tmp_path / "out").column("key").to_pylist() == [f"k{i}" for i in left]
    assert scored(tmp_path / "out").column("output").to_pylist() == expected(model, [rows[i] for i in left])
    assert fastlstm.score(model, source, tmp_path / "out", part_rows=PART).rejected == 3
    with pytest.raises(InputError, match="Row 3 cannot be scored: 'x': null in place of a sequence"):
        fastlstm.score(model, source, tmp_path / "stopped", part_rows=PART, on_error="stop", workers=1)


def test_no_rows_give_one_part_with_the_schema(tmp_path, model, rows):
    for source in (table(rows).slice(0, 0), table(rows).slice(0, 0).to_reader()):
        out = tmp_path / type(source).__name__
        assert fastlstm.score(model, source, out).rows == 0
        assert scored(out).schema.names == ["id", "output"]
        assert fastlstm.score(model, table(rows).slice(0, 0), tmp_path / "Table").scored_now == 0


# --- files that cannot be read or written -----------------------------------------------------------------------


def test_files_of_other_schemas_in_one_folder(tmp_path, model, rows):
    whole = table(rows[:60])
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(whole.slice(0, 30), folder / "0.parquet")
    other = whole.slice(30).set_column(0, "id", pa.array(np.arange(30, 60, dtype=np.int32)))
    other = other.set_column(1, "x", pa.array(other["x"].to_pylist(), pa.large_list(pa.list_(pa.float64(), 3))))
    pq.write_table(other, folder / "1.parquet")  # other types of the same columns: the right result
    fastlstm.score(model, folder, tmp_path / "out")
    assert scored(tmp_path / "out").column("output").to_pylist() == expected(model, rows[:60])
    assert scored(tmp_path / "out").column("id").to_pylist() == list(range(60))
    pq.write_table(other.rename_columns(["id", "y"]), folder / "1.parquet")
    with pytest.raises(InputError, match=r"1\.parquet' and .*0\.parquet' have different columns: .* x, y"):
        fastlstm.score(model, folder, tmp_path / "refused")
    pq.write_table(other.set_column(0, "id", pa.array(["a"] * 30)), folder / "1.parquet")
    with pytest.raises(InputError, match="columns of different types"):
        fastlstm.score(model, folder, tmp_path / "refused")
    (folder / "2.csv").write_text("id\n")
    with pytest.raises(InputError, match="Files of one kind"):
        fastlstm.score(model, folder, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_file_without_footer_is_named_before_anything_runs(tmp_path, model, rows):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "abc":
        pq.write_table(table(rows[:50]), folder / f"{name}.parquet")
    (folder / "b.parquet").write_bytes((folder / "b.parquet").read_bytes()[:-100])
    with pytest.raises(FileFormatError, match=r"b\.parquet' cannot be read"):
        fastlstm.score(model, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_damaged_in_the_middle_stops_the_run_and_mended_it_goes_on(tmp_path, monkeypatch, model, rows):
    monkeypatch.setattr(sources, "_TAIL", 1000)  # as in a large file, what identifies it is sound
    folder, out = tmp_path / "data", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        part = table(rows[number * 200 : (number + 1) * 200])
        pq.write_table(part, folder / f"{number}.parquet", compression="zstd", use_dictionary=False)
    path = folder / "1.parquet"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    assert len(path.read_bytes()) == len(whole)
    with pytest.raises(FileFormatError, match=r"1\.parquet' cannot be read: .*Mend it and start again"):
        fastlstm.score(model, folder, out, part_rows=PART, workers=1)
    path.write_bytes(whole)
    assert 0 < fastlstm.score(model, folder, out, part_rows=PART).scored_now < 600
    assert scored(out).column("output").to_pylist() == expected(model, rows[:600])


def test_a_full_disk_is_told_and_a_later_run_goes_on(tmp_path, model, data, undisturbed, monkeypatch):
    from fsspec.implementations.local import LocalFileOpener

    writes = []
    honest = LocalFileOpener.write

    def full(self, *args):
        writes.append(1)
        if len(writes) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return honest(self, *args)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileOpener, "write", full, raising=False)
        with pytest.raises(OSError, match=r"No space left on device: '.*_aside") as caught:
            fastlstm.score(model, data, out, part_rows=PART)
    assert caught.value.errno == errno.ENOSPC
    assert not list((out / "_aside").iterdir())
    assert 0 < len(list(out.glob("part-*"))) < COUNT / PART
    fastlstm.score(model, data, out, part_rows=PART)
    assert digests(out) == undisturbed


FILLED = """
import subprocess, sys
from pathlib import Path
import fastlstm
model, data, disk, part_rows = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], check=True)
out = disk / "out"
try:
    fastlstm.score(model, data, out, part_rows=part_rows)
except OSError as error:
    print(error)
print(len(list(out.glob("part-*"))), len(list((out / "_aside").iterdir())))
subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
fastlstm.score(model, data, out, part_rows=part_rows)
subprocess.run(["cp", "-r", out, disk.parent / "copy"], check=True)
"""


@pytest.mark.long
def test_a_disk_that_is_really_full(tmp_path, model, data, undisturbed):
    """A file system of 40 kB in a name space of its own, which any user of Linux may make."""
    disk = tmp_path / "disk"
    disk.mkdir()
    model.save(tmp_path / "model.fastlstm")
    words = [sys.executable, "-c", FILLED, tmp_path / "model.fastlstm", data, disk, PART]
    command = ["unshare", "--map-root-user", "--mount", *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    told, counted = found.stdout.splitlines()
    assert re.fullmatch(r"\[Errno 28\] No space left on device: '.*/disk/out/_aside/.*'", told)
    parts, aside = map(int, counted.split())
    assert 0 < parts < COUNT / PART
    assert aside == 0
    assert digests(tmp_path / "copy") == undisturbed


def test_any_file_system_that_fsspec_knows_will_do(model, data, undisturbed):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(data), "/data/rows.parquet")
    fastlstm.score(model, "memory://data/rows.parquet", "memory://out", part_rows=PART)
    import hashlib

    found = {
        path.rpartition("/")[2]: hashlib.sha256(memory.cat_file(path)).hexdigest()
        for path in memory.ls("/out", detail=False)
    }
    del found["_manifest.json"]
    assert found == undisturbed
    assert fastlstm.score(model, "memory://data/rows.parquet", "memory://out", part_rows=PART).scored_now == 0


# --- killed ----------------------------------------------------------------------------------------------------


def test_runs_that_are_killed_leave_what_one_undisturbed_run_does(tmp_path):
    saved = tmp_path / "model.fastlstm"
    classifier().save(saved)
    rows = table(sequences(KILL_ROWS, longest=60))
    paths = [tmp_path / f"{size}.parquet" for size in (997, 64, KILL_ROWS)]
    for path in paths:
        pq.write_table(rows, path, row_group_size=int(path.stem))
    part = max(20, KILL_ROWS // 100)
    fastlstm.score(str(saved), paths[0], tmp_path / "whole", part_rows=part)
    whole, draw = digests(tmp_path / "whole"), random.Random(KILLS)
    killed = 0
    for number in range(KILLS):
        out, path = tmp_path / f"killed{number}", paths[number % 3]
        code = "import sys; from fastlstm.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "score", saved, path, "-o", out, "--part-rows", str(part)]
        command += ["--workers", str(1 + (number + number // 3) % 3)]
        parts = draw.randrange(0, 90)
        process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE)
        while process.poll() is None and len(list(out.glob("part-*"))) < parts:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        before = len(list(out.glob("part-*")))
        summary = fastlstm.score(str(saved), path, out, part_rows=part, batch_rows=draw.randrange(1, 100))
        assert summary.scored_now == KILL_ROWS - before * part
        assert digests(out) == whole
        assert scored(out).column("id").to_pylist() == list(range(KILL_ROWS))
        shutil.rmtree(out)
    assert killed > KILLS / 2  # most were at work when they were killed


# --- workers of other tools --------------------------------------------------------------------------------------


def _scores(packed: bytes, given: pa.Table) -> list:
    return pickle.loads(packed)(given).column("output").to_pylist()  # noqa: S301 - our own bytes


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_scorer_pickles_with_precision_threads_and_options_into_a_worker(method, rows):
    model = classifier(units=48, threads=2, precision="int16")
    scorer = Scorer(model, {"input": "x"}, max_length=11)
    given = table(rows[:50])
    here = scorer(given).column("output").to_pylist()
    assert None in here  # rows of 12 steps
    packed = pickle.dumps(scorer)
    again = pickle.loads(packed)  # noqa: S301
    assert again.model.threads == 2
    assert str(again.model.plan) == str(model.plan)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_scores, (packed, given)) == here
