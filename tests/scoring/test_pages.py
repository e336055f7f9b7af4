"""Lists out of a Parquet file's pages: what pyarrow reads, however it was written; and what is left to pyarrow."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastlstm.errors import FileFormatError
from fastlstm.scoring import pages, sources
from fastlstm.scoring.pages import Lists, Unusual
from fastlstm.scoring.sources import open_source

RNG = np.random.default_rng(3)
LENGTHS = RNG.integers(1, 40, 300)


def lists(kind, values, lengths=LENGTHS):
    """Lists of these lengths; the values repeat."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    made = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
    return made.from_arrays(
        pa.array(offsets, pa.int64() if made is pa.LargeListArray else pa.int32()), values[: offsets[-1]], type=kind
    )


def numbers(kind, count):
    drawn = RNG.standard_normal(count) if pa.types.is_floating(kind) else RNG.integers(-(2**31), 2**31, count)
    return pa.array(drawn, kind)


def column(name):
    steps = int(LENGTHS.sum())
    if name == "numbers":
        return lists(pa.list_(pa.int64()), numbers(pa.int64(), steps))
    if name == "large":
        return lists(pa.large_list(pa.field("item", pa.float64(), nullable=False)), numbers(pa.float64(), steps))
    if name == "fixed":
        inner = pa.list_(pa.float32(), 3)
        return lists(pa.list_(inner), pa.FixedSizeListArray.from_arrays(numbers(pa.float32(), 3 * steps), type=inner))
    widths = RNG.integers(1, 5, steps)
    return lists(pa.list_(pa.list_(pa.int32())), lists(pa.list_(pa.int32()), numbers(pa.int32(), widths.sum()), widths))


def taken(path, sizes):
    """The column in pieces of these sizes, in each row group again, out of its pages."""
    metadata, found = pq.read_metadata(path), []
    with open(path, "rb") as file:
        for group in range(metadata.num_row_groups):
            column = Lists(file, metadata, group, pq.read_schema(path).field("x"))
            left = metadata.row_group(group).num_rows
            for size in sizes:
                found.append(column.take(min(size, left)))
                left -= len(found[-1])
            assert not left
    return pa.chunked_array(found)


@pytest.mark.parametrize("name", ["numbers", "large", "fixed", "ragged"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize(
    ("compression", "dictionary", "page"), [("none", False, 1 << 20), ("zstd", False, 700), ("snappy", True, 5000)]
)
def test_lists_are_those_that_pyarrow_reads(tmp_path, monkeypatch, name, version, compression, dictionary, page):
    monkeypatch.setattr(pages, "_RUN", 1)  # short lists of numbers, too
    table = pa.table({"x": column(name)})
    path = tmp_path / "rows.parquet"
    pq.write_table(
        table, path, row_group_size=200, data_page_version=version, compression=compression, use_dictionary=dictionary,
        data_page_size=page, write_batch_size=16, dictionary_pagesize_limit=1000,
    )  # fmt: skip
    found = taken(path, [1, 70, 200])
    assert found.combine_chunks().equals(table["x"].combine_chunks())


@pytest.mark.parametrize(
    "rows",
    [
        [[[1.0, 2.0]], None, [[3.0, 4.0]]],
        [[[1.0, 2.0]], [], [[3.0, 4.0]]],
        [[[1.0, 2.0]], [None], [[3.0, 4.0]]],
        [[[1.0, 2.0]], [[3.0, None]]],
    ],
)
def test_what_is_null_or_empty_is_left_to_pyarrow(tmp_path, rows):
    path = tmp_path / "rows.parquet"
    table = pa.table({"x": pa.array(rows, pa.list_(pa.list_(pa.float32(), 2)))})
    pq.write_table(table, path)
    with pytest.raises(Unusual):
        taken(path, [len(rows)])
    assert pa.Table.from_batches(open_source(path).read(0, None, ["x"], 1 << 20)).equals(table)


def test_lists_of_few_numbers_are_left_to_pyarrow_which_finds_short_runs_faster(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": column("numbers")}), path)
    with pytest.raises(Unusual):
        taken(path, [200])


@pytest.mark.parametrize("kind", [pa.list_(pa.float16()), pa.list_(pa.string()), pa.float32(), pa.list_(pa.bool_())])
def test_other_types_are_left_to_pyarrow(tmp_path, kind):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": pa.nulls(2, kind)}), path)
    with pytest.raises(Unusual):
        taken(path, [2])


def test_pyarrow_goes_on_where_something_unusual_comes(tmp_path, monkeypatch):
    rows = [[float(i)] for i in range(3000)]
    rows[2600] = None
    table = pa.table({"id": np.arange(3000), "x": pa.array(rows, pa.list_(pa.float32()))})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=2000, data_page_size=512, write_batch_size=100, use_dictionary=["id"])
    counts = []
    take = Lists.take

    def counted(self, count):
        found = take(self, count)
        counts.append(len(found))
        return found

    monkeypatch.setattr(Lists, "take", counted)
    monkeypatch.setattr(sources, "_READ", 300)
    source = open_source(path)
    for start, stop in ((0, None), (0, 1), (1999, 2601), (2500, 2700), (2601, 3000)):
        counts.clear()
        found = pa.Table.from_batches(source.read(start, stop, ["x", "id"], 1 << 20))
        assert found.equals(table.select(["x", "id"]).slice(start, None if stop is None else stop - start))
    counts.clear()
    list(source.read(0, None, ["x"], 1 << 20))
    assert 2000 < sum(counts) < 2600  # the rows before the null were read out of the pages


def test_damaged_pages_are_never_read_as_other_lists_than_pyarrows(tmp_path):
    """Bytes of pages and of their headers are changed: either both read the same, or it is left to pyarrow."""
    path = tmp_path / "rows.parquet"
    table = pa.table({"x": column("fixed").slice(0, 60)})
    pq.write_table(table, path, data_page_size=900, write_batch_size=16, use_dictionary=False, compression="none")
    content = path.read_bytes()
    last = pq.read_metadata(path).row_group(0).column(0).total_compressed_size
    left = 0
    for place in RNG.integers(4, last, 300).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(RNG.integers(8))
        path.write_bytes(changed)
        try:
            found = taken(path, [60])
        except Unusual:
            left += 1
            continue
        try:
            expected = pq.read_table(path)["x"]
        except (pa.ArrowException, OSError):
            continue  # pyarrow looks at what we do not need
        assert [repr(row) for row in found.to_pylist()] == [repr(row) for row in expected.to_pylist()]
    assert left > 3


def test_a_file_that_ends_early_is_told(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": column("fixed")}), path, use_dictionary=False, compression="none")
    source = open_source(path)
    content = path.read_bytes()
    path.write_bytes(content[:2000] + content[-2000:])
    with pytest.raises(FileFormatError, match=r"rows.parquet' cannot be read: "):
        list(source.read(0, None, ["x"], 1 << 20))
