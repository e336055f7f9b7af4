"""Where rows come from: Parquet files and folders, CSV, ``.npz``, Arrow streams, and tables in memory.

A source yields its rows in order, in slices that lie within fixed ranges, so that the contents of a part do not depend
on row groups, on the boundaries of files or on how much is read at once.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastlstm.errors import DependencyError, FileFormatError, InputError

__all__ = ["Source", "file_identity", "filesystem", "find_files", "open_source", "slices"]

_BATCH = 1 << 14  # most rows of a slice: with lengths of 5 to 200, 84 rows of one length run together
_READ = 1 << 10  # most rows of a file read at once: pyarrow reuses its buffers of 4 MB, but larger ones seldom
_TAIL = 1 << 16  # bytes at each end of a file that are hashed to identify it; a Parquet file's footer is at its end


class Source(Protocol):
    """Rows in order.

    Attributes
    ----------
    schema : pyarrow.Schema
    rows : int or None
        None if only reading to the end would tell.
    identity : list
        The manifest's description of the input, as plain data, which has to be the same after a restart.
    """

    schema: Any
    rows: int | None
    identity: list[Any]

    def read(self, start: int, stop: int | None, columns: Sequence[str], most_bytes: int) -> Iterator[Any]:
        """Yield RecordBatches with the rows from `start` on, in order, each of at most about `most_bytes`."""


def filesystem(path: Any) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL, and the path within it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise DependencyError.missing("fsspec", "score", "Scoring data sets") from error
    try:
        fs, inside = url_to_fs(os.fspath(path))
    except (ImportError, ValueError) as error:
        raise InputError(f"'{path}' names a file system that cannot be opened: {error}.") from error
    return fs, inside


def open_source(source: Any) -> Source:
    """Return the source of a path, folder, list of paths, ``"-"`` or table.

    Raises
    ------
    InputError, FileFormatError
        If there is nothing to read, or schemas do not match; nothing has been computed then.
    """
    found = _opened_source(source)
    names = list(found.schema.names)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"The column '{twice[0]}' is there more than once; give each column a name of its own.")
    return found


def _opened_source(source: Any) -> Source:
    if isinstance(source, str | os.PathLike):
        if os.fspath(source) == "-":
            import sys

            return StreamSource(_stdin(sys.stdin.buffer), "an Arrow stream")
        return _files([source])
    if isinstance(source, list | tuple) and source and all(isinstance(s, str | os.PathLike) for s in source):
        return _files(source)
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        return TableSource(source, "a table")
    if hasattr(source, "collect") and hasattr(source, "collect_schema"):  # a lazy polars frame
        source = source.collect()
    if hasattr(source, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(source)
        if hasattr(source, "__len__"):
            return TableSource(reader.read_all(), f"a {type(source).__name__}")
        return StreamSource(reader, "an Arrow stream")
    raise InputError(
        "score reads paths of .parquet, .csv and .npz files, folders of them, '-' (an Arrow stream on stdin), and "
        f"Arrow, polars or pandas tables; got {type(source).__name__}."
    )


def slices(
    source: Source, columns: Sequence[str], part_rows: int, most_bytes: int, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, Any, bool]]:
    """Yield (part, table, whether the part ends with it) for the wanted parts, in order.

    A table holds as much of a part as was read at once; small pieces are combined up to `most_bytes`. A source without
    rows has one empty part.
    """
    schema = pa.schema([source.schema.field(name) for name in columns])
    waiting: list[Any] = []
    rows = size = 0
    part = -1
    for start, stop in _runs(source.rows, part_rows, wanted):
        at = start
        for batch in source.read(start, stop, columns, most_bytes):
            while batch.num_rows:
                number = at // part_rows
                here = batch.slice(0, (number + 1) * part_rows - at)
                batch = batch.slice(here.num_rows)
                at += here.num_rows
                if not wanted(number):
                    continue
                if waiting and (part != number or rows + here.num_rows > _BATCH or size + here.nbytes > most_bytes):
                    yield part, _taken(waiting), part != number
                    rows = size = 0
                part = number
                waiting.append(here)
                rows, size = rows + here.num_rows, size + here.nbytes
    if waiting:
        yield part, _taken(waiting), True
    elif part < 0 and not source.rows and wanted(0):
        yield 0, schema.empty_table(), True


def _taken(waiting: list[Any]) -> Any:
    """Return batches as a table without keeping references, so that releasing the table frees their memory."""
    table = pa.Table.from_batches(waiting)
    waiting.clear()
    return table


def _runs(rows: int | None, part_rows: int, wanted: Callable[[int], bool]) -> list[tuple[int, int | None]]:
    """Return ranges of rows that contain the wanted parts; adjacent parts are read together."""
    if rows is None:
        return [(0, None)]
    runs: list[tuple[int, int | None]] = []
    for part in range(-(-rows // part_rows)):
        if wanted(part):
            start, stop = part * part_rows, min(rows, (part + 1) * part_rows)
            if runs and runs[-1][1] == start:
                runs[-1] = runs[-1][0], stop
            else:
                runs.append((start, stop))
    return runs


# --- files --------------------------------------------------------------------------------------------------


def find_files(source: Any) -> list[tuple[Any, str]]:
    """Return the file system and path of each file; in folders, of those whose names do not begin with "_" or "."."""
    found: list[tuple[Any, str]] = []
    for path in [source] if isinstance(source, str | os.PathLike) else source:
        fs, inside = filesystem(path)
        if fs.isdir(inside):
            names = sorted(
                name
                for name in fs.find(inside)
                if not any(part.startswith(("_", ".")) for part in posixpath.relpath(name, inside).split("/"))
            )
            if not names:
                raise InputError(f"The folder '{path}' holds no files to score.")
            found += [(fs, name) for name in names]
        elif fs.exists(inside):
            found.append((fs, inside))
        else:
            raise InputError(f"There is no file or folder '{path}' to score.")
    return found


def _files(paths: Sequence[Any]) -> Source:
    found = find_files(paths)
    endings = sorted({posixpath.splitext(name)[1].lower() for _, name in found})
    if len(endings) > 1:
        raise InputError(f"Files of one kind can be scored at once; here are {', '.join(endings)}.")
    if endings[0] in (".parquet", ".pq"):
        return ParquetSource(found)
    if endings[0] == ".csv":
        return CsvSource(found)
    if endings[0] == ".npz" and len(found) == 1:
        return _npz(*found[0])
    raise InputError(f"score reads .parquet and .csv files, folders of them, and one .npz file; got {found[0][1]}.")


def file_identity(fs: Any, name: str) -> list[Any]:
    """Return what identifies a file: its name, size, and a hash of both its ends."""
    size = int(fs.size(name))
    with fs.open(name, "rb") as file:
        head = file.read(_TAIL)
        file.seek(max(0, size - _TAIL))
        ends = hashlib.sha256(head + file.read(_TAIL))
    return [posixpath.basename(name), size, ends.hexdigest()]


def _one_schema(schemas: Sequence[tuple[str, Any]]) -> Any:
    """Return the schema with which all files can be read; InputError names the file that does not match."""
    name, schema = schemas[0]
    for other, its in schemas[1:]:
        if missing := set(schema.names) ^ set(its.names):
            raise InputError(
                f"'{other}' and '{name}' have different columns: only one of them has "
                f"{', '.join(sorted(missing))}. Score them apart, or give them the same columns."
            )
        try:
            schema = pa.unify_schemas([schema.remove_metadata(), its.remove_metadata()], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"'{other}' and '{name}' have columns of different types: {error}.") from error
    return schema.remove_metadata()


class ParquetSource:
    """Parquet files, one after another."""

    def __init__(self, files: Sequence[tuple[Any, str]]) -> None:
        self._files: list[tuple[Any, str, int]] = []
        schemas = []
        for fs, name in files:
            with _opened(fs, name) as file:
                schemas.append((name, file.schema_arrow))
                self._files.append((fs, name, file.metadata.num_rows))
        self.schema = _one_schema(schemas)
        self.rows: int | None = sum(rows for _, _, rows in self._files)
        self.identity = [file_identity(fs, name) for fs, name in files]

    def read(self, start: int, stop: int | None, columns: Sequence[str], most_bytes: int) -> Iterator[Any]:
        """Yield batches, reading only the row groups that contain some of the rows."""
        end = sum(rows for _, _, rows in self._files) if stop is None else stop
        at = 0
        schema = pa.schema([self.schema.field(name) for name in columns])
        for fs, name, rows in self._files:
            first, at = at, at + rows
            if rows and first < end and at > start:
                yield from _parquet_rows(fs, name, max(0, start - first), min(rows, end - first), schema, most_bytes)


def _opened(fs: Any, name: str) -> Any:
    try:
        # Without reading ahead a whole row group would not be in memory at once.
        return pq.ParquetFile(_file(fs, name), pre_buffer=False, buffer_size=1 << 16)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(name, error) from error


def _file(fs: Any, name: str) -> Any:
    """Return what pyarrow can open: the path of a local file, else a file opened by fsspec."""
    return name if _is_local(fs) else fs.open(name, "rb")


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _unreadable(name: str, error: Exception) -> FileFormatError:
    text = " ".join(str(error).split()).rstrip(".")
    return FileFormatError(
        f"'{name}' cannot be read: {text}. Mend it and start again: parts that are written stay. "
        "To leave it out, score into another folder."
    )


def _parquet_rows(fs: Any, name: str, start: int, stop: int, schema: Any, most_bytes: int) -> Iterator[Any]:
    with _opened(fs, name) as file:
        groups, skip, at = [], start, 0
        size = 1
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            if at + group.num_rows > start and at < stop:
                groups.append(number)
                size = max(size, group.total_byte_size // max(group.num_rows, 1))
            elif at + group.num_rows <= start:
                skip -= group.num_rows
            at += group.num_rows
        left = stop - start
        batches = file.iter_batches(_at_once(min(_READ, most_bytes // size)), groups, list(schema.names), False)
        while left:
            try:
                batch = next(batches)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(name, error) from error
            except StopIteration:
                raise _unreadable(name, EOFError("it ends before its last row")) from None
            wanted = batch.slice(skip, left)
            skip = max(0, skip - batch.num_rows)
            left -= wanted.num_rows
            yield _cast(wanted, schema, name)


def _cast(batch: Any, schema: Any, name: str) -> Any:
    if batch.schema.equals(schema):
        return batch
    try:
        return batch.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"'{name}' cannot be read as the other files are: {error}.") from error


class CsvSource:
    """CSV files with a header line, one after another."""

    rows: int | None = None

    def __init__(self, files: Sequence[tuple[Any, str]]) -> None:
        self._files = [file for file in files if file[0].size(file[1])]
        if not self._files:
            raise InputError(f"'{files[0][1]}' is empty: a CSV file begins with a line of column names.")
        self.schema = _one_schema([(name, self._reader(fs, name).schema) for fs, name in self._files])
        self.identity = [file_identity(fs, name) for fs, name in files]

    def _reader(self, fs: Any, name: str, schema: Any = None) -> Any:
        from pyarrow import csv

        types = None if schema is None else {field.name: field.type for field in schema}
        try:
            return csv.open_csv(_file(fs, name), convert_options=csv.ConvertOptions(column_types=types))
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(name, error) from error

    def read(self, start: int, stop: int | None, columns: Sequence[str], most_bytes: int) -> Iterator[Any]:
        """Yield batches; rows before `start` are read and dropped."""
        at = 0
        schema = pa.schema([self.schema.field(name) for name in columns])
        for fs, name in self._files:
            batches = self._reader(fs, name, self.schema)
            while True:
                try:
                    batch = batches.read_next_batch()
                except StopIteration:
                    break
                except (pa.ArrowException, OSError) as error:
                    raise _unreadable(name, error) from error
                kept = batch.slice(max(0, start - at), None if stop is None else max(0, stop - max(at, start)))
                at += batch.num_rows
                yield from _pieces(_cast(kept.select(schema.names), schema, name), most_bytes)


# --- memory and streams -------------------------------------------------------------------------------------


class TableSource:
    """A table in memory."""

    def __init__(self, table: Any, what: str) -> None:
        self.schema = table.schema.remove_metadata()
        self.rows: int | None = table.num_rows
        self.identity = [[what, table.num_rows, str(self.schema)]]
        self._table = table.replace_schema_metadata(None)

    def read(self, start: int, stop: int | None, columns: Sequence[str], most_bytes: int) -> Iterator[Any]:
        """Yield batches, views of the table."""
        end = self._table.num_rows if stop is None else stop
        for batch in self._table.slice(start, end - start).select(list(columns)).to_batches():
            yield from _pieces(batch, most_bytes)


class StreamSource:
    """An Arrow stream, which can be read only once."""

    rows: int | None = None

    def __init__(self, reader: Any, what: str) -> None:
        self._reader = reader
        self.schema = reader.schema.remove_metadata()
        self.identity = [[what, str(self.schema)]]

    def read(self, start: int, stop: int | None, columns: Sequence[str], most_bytes: int) -> Iterator[Any]:
        """Yield batches; rows before `start` are read and dropped."""
        at = 0
        while True:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise _unreadable("the Arrow stream", error) from error
            kept = batch.slice(max(0, start - at), None if stop is None else max(0, stop - max(at, start)))
            at += batch.num_rows
            yield from _pieces(kept.select(list(columns)).replace_schema_metadata(None), most_bytes)


def _stdin(stream: Any) -> Any:
    try:
        return pa.ipc.open_stream(stream)
    except pa.ArrowException as error:
        raise FileFormatError(f"What comes on stdin is no Arrow stream: {error}.") from error


def _at_once(most: int) -> int:
    """Return the rows of a batch, of which there may be `most`: several make _BATCH, none of them much smaller."""
    pieces = -(-_BATCH // max(1, most))
    return -(-_BATCH // pieces)


def _pieces(batch: Any, most_bytes: int) -> Iterator[Any]:
    """Yield a batch in pieces of about `most_bytes`."""
    rows = batch.num_rows
    size = max(1, batch.nbytes // max(rows, 1)) if rows else 1
    step = _at_once(most_bytes // size)
    for at in range(0, rows, step):
        yield batch.slice(at, step)


def _npz(fs: Any, name: str) -> Source:
    """Return the arrays of a .npz file as columns, with rows on their first axis."""
    columns = {}
    with fs.open(name, "rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            for key in archive.files:
                columns[key] = _nested(archive[key])
        except (ValueError, OSError, EOFError, AttributeError) as error:
            raise _unreadable(name, error) from error
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise InputError(f"'{name}': all arrays should have as many rows; got {sorted(lengths)}.")
    source = TableSource(pa.table(columns), "arrays")
    source.identity = [file_identity(fs, name)]
    return source


def _nested(array: Any) -> Any:
    if array.ndim == 0:
        raise ValueError("an array without axes has no rows")
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in array.shape[:0:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
