"""Long recordings: fed in pieces through streams of the model, many side by side, with memory that does not grow.

Every recording becomes a part of its own. A row holds a block of frames: the recording's name, the number of the
block's first frame, and the outputs of its frames as lists. Blocks are the same however many recordings run at once.
"""

from __future__ import annotations

import os
import posixpath
import sys
import threading
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided

from fastlstm.errors import InputError, counted
from fastlstm.model import Model
from fastlstm.scoring.arrow import arrow_column, arrow_type
from fastlstm.scoring.parts import OutputFolder, model_hash
from fastlstm.scoring.ports import OutputPort
from fastlstm.scoring.progress import Progress
from fastlstm.scoring.run import Summary, summarised
from fastlstm.scoring.sources import file_identity, find_files
from fastlstm.target.machine import cores
from fastlstm.version import __version__

__all__ = ["BLOCK", "score_recordings"]

Array = npt.NDArray[Any]

BLOCK = 4096
"""Frames of a block, which is a row of the output."""

_FED = 1 << 20  # bytes that a stream is fed at once: 32 recordings in frames of 576 samples took 1 GB as whole blocks
_UNKNOWN = 0x7FFFF000  # bytes of samples from which on a header means: up to the end, as SoX and FFmpeg write to pipes
_ROWS = 16  # blocks that wait for a row group of the file


def score_recordings(
    model: Model | str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str],
    *,
    column: str | None = None,
    constants: Mapping[str, Any] | None = None,
    state: Mapping[str, str] | None = None,
    frame: int | None = None,
    overlap: int = 0,
    streams: int = 16,
    workers: int | None = None,
    on_error: str = "aside",
    resume: bool | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Summary:
    """Score recordings from beginning to end, each as one sequence.

    Parameters
    ----------
    model : Model or path
        One that streams (`Model.stream`).
    source : path or sequence of paths
        ``.wav`` files (integers of 8 to 32 bits, which become -1 to 1) and ``.npy`` files of frames
        [frames, features], or folders of them. Where a model takes frames of several samples, one channel is cut into
        such frames, the last one filled up with zeros.
    out : path
        A folder, as for `fastlstm.score`.
    column : str, optional
        The input that takes the recording; the one that is no constant, if not given.
    constants : mapping of str to number or array, optional
        The other inputs, a sample rate for example.
    state : mapping of str to str, optional
        As for `Model.stream`.
    frame : int, optional
        Samples of a frame, those of the overlap among them, where the model leaves their number open.
    overlap : int
        Samples with which a frame of several begins and the frame before it ended; zeros in the first.
    streams : int
        Recordings that each worker advances at once.
    workers : int, optional
        Threads; as many as cores if not given.
    on_error : "aside" or "stop"
    resume : bool, optional
    watch : callable, optional
        As for `fastlstm.score`; progress counts frames.

    Returns
    -------
    Summary
        `rows` are frames; `rejected` are recordings.
    """
    if on_error not in ("aside", "stop"):
        raise InputError(f'on_error should be "aside" or "stop"; got {on_error!r}.')
    if not isinstance(model, Model):
        from fastlstm.loading import load

        model = load(model)
    player = _Player(model, column, dict(constants or {}), state, frame, overlap, streams, on_error == "stop")
    files = find_files(source)
    names = _names([name for _, name in files])
    manifest = {
        "version": __version__,
        "model": model_hash(model.graph),
        "input": [file_identity(fs, name) for fs, name in files],
        "columns": {player.main: "recording"},
        "constants": {name: np.asarray(value).tolist() for name, value in player.constants.items()},
        "state": dict(state or {}),
        "frame": frame,
        "overlap": overlap,
        "block": BLOCK,
    }
    output = OutputFolder(out, manifest)
    done = output.begin(resume)
    progress = Progress(None, what="frames")
    if watch is not None:
        watch(progress)
    recordings = iter([(i, names[i], *files[i]) for i in range(len(files)) if i not in done])
    workers = workers or max(1, cores() // (model.threads or cores()))
    lock = threading.Lock()
    with ThreadPoolExecutor(workers, "fastlstm-score") as pool:
        futures = [pool.submit(player.play, _shared(recordings, lock), output, progress) for _ in range(workers)]
    for future in futures:
        future.result()
    output.end()
    return summarised(output, progress)


def _shared(items: Iterator[Any], lock: threading.Lock) -> Iterator[Any]:
    """Yield what is left of an iterator that several threads share."""
    while True:
        with lock:
            item = next(items, None)
        if item is None:
            return
        yield item


def _names(paths: Sequence[str]) -> list[str]:
    """Return the files' names, with as much of their folders as they share no more."""
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [posixpath.relpath(path, common) for path in paths]


class _Player:
    """A model that recordings are played to."""

    def __init__(
        self,
        model: Model,
        main: str | None,
        constants: dict[str, Any],
        state: Mapping[str, str] | None,
        size: int | None,
        overlap: int,
        streams: int,
        stop: bool,
    ) -> None:
        self._model, self._state, self._streams, self._stop = model, state, streams, stop
        self.constants = constants
        self._halted = False
        stream = model.stream(state=state)
        if stream.hop > 1:
            raise InputError(
                f"A step of this model takes {stream.hop} frames; recordings are played frame by frame. "
                "Cut them into chunks of so many frames and give those to Stream.push."
            )
        self._delay = stream.delay
        frame, chunk = stream.blank_frame(), stream.blank_chunk(2)
        only = model.inputs[0].name
        self._several = isinstance(frame, dict)
        self._frames = {name: np.shape(a) for name, a in frame.items()} if self._several else {only: np.shape(frame)}
        chunks = {name: np.shape(a) for name, a in chunk.items()} if self._several else {only: np.shape(chunk)}
        self._lasting = {name for name, shape in self._frames.items() if chunks[name] == shape}
        self._dtypes = {name: np.asarray(a).dtype for name, a in (frame if self._several else {only: frame}).items()}
        free = [name for name in self._frames if name not in constants]
        if unknown := set(constants) - set(self._frames):
            raise InputError(f"There is no input '{unknown.pop()}' of a stream; there are {', '.join(self._frames)}.")
        if main is None and len(free) == 1:
            main = free[0]
        if main not in free or len(free) != 1:
            raise InputError(
                f"A recording is one input; give each other of {', '.join(free) or 'the inputs'} one value "
                "(constants={...}, --constant NAME=VALUE)."
            )
        self.main = main = free[0]
        self._set_frame(size, overlap)
        shown = stream.push(self._chunk(np.zeros((1, *self._frames[main]), self._dtypes[main])))
        shown = shown if isinstance(shown, dict) else {model.outputs[0].name: shown}
        self._ports = {n: OutputPort(n, str(a.dtype), 0, 1, a.shape[1:]) for n, a in shown.items()}
        self._schema = pa.schema(
            [("recording", pa.string()), ("first_frame", pa.int64())]
            + [(name, arrow_type(port)) for name, port in self._ports.items()]
        )

    def _set_frame(self, size: int | None, overlap: int) -> None:
        """Take as many samples a frame as the model says, or the caller where the model's number is open."""
        shape = self._frames[self.main]
        if size is not None:
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise InputError(f"frame should be a positive number of samples; got {size!r}.")
            if int(np.prod(shape)) not in (1, size) or not shape:
                raise InputError(
                    f"The model takes frames of {list(shape)}, which is no {size} samples; leave frame out."
                )
            shape = self._frames[self.main] = (*shape[:-1], size) if np.prod(shape) == 1 else shape
        samples = int(np.prod(shape))
        if not isinstance(overlap, int) or not 0 <= overlap < samples:
            raise InputError(
                f"overlap should be less than the {counted(samples, 'sample')} of a frame; got {overlap!r}. Say how "
                "many samples a frame has (frame=512, --frame 512) if the model leaves that open."
            )
        self._overlap = overlap
        whole = samples * self._dtypes[self.main].itemsize * BLOCK
        halvings = max(0, -(-whole // _FED) - 1).bit_length()
        self._fed = max(1, BLOCK >> halvings)  # frames; they divide a block

    def play(self, recordings: Iterator[tuple[int, str, Any, str]], output: OutputFolder, progress: Progress) -> None:
        """Advance recordings side by side until there are no more."""
        pool = self._model.streams(self._streams, self._state)
        active: dict[int, _Track] = {}
        try:
            while not self._halted:
                while len(active) < self._streams:
                    track = self._next(recordings, output)
                    if track is None:
                        break
                    active[pool.open()] = track
                if not active:
                    return
                chunks = {stream: track.read(self._fed) for stream, track in active.items()}
                going = [stream for stream, frames in chunks.items() if len(frames)]
                results = pool.push(going, [self._chunk(chunks[stream]) for stream in going]) if going else []
                for stream, result in zip(going, results, strict=True):
                    active[stream].write(self._named(result), len(chunks[stream]))
                    progress.add(len(chunks[stream]))
                for stream in [stream for stream in active if stream not in going]:
                    (tail,) = pool.finish([stream])
                    active.pop(stream).end(self._named(tail))
                    pool.close(stream)
        except BaseException:
            self._halted = True
            raise
        finally:
            for track in active.values():
                track.abandon()

    def _next(self, recordings: Iterator[tuple[int, str, Any, str]], output: OutputFolder) -> _Track | None:
        """Open the next recording that can be read; the others go aside or stop the run."""
        for number, name, fs, path in recordings:
            try:
                read = _opened(fs, path, self._frames[self.main], self._dtypes[self.main], self._overlap)
            except InputError as error:
                if self._stop:
                    raise
                rejected = pa.table({"row": [number], "reason": [str(error)], "recording": [name]})
                output.write(number, self._schema.empty_table(), rejected)
                continue
            return _Track(name, read, output.writing(number, self._schema), self._ports, self._schema, self._delay)
        return None

    def _named(self, result: Any) -> Mapping[str, Array]:
        """Return a result by output."""
        return result if isinstance(result, dict) else {next(iter(self._ports)): result}

    def _chunk(self, frames: Array) -> Any:
        """Return what a pool takes for some frames of the recording."""
        if not self._several:
            return frames
        chunk = {self.main: frames}
        for name, value in self.constants.items():
            shape = self._frames[name] if name in self._lasting else (len(frames), *self._frames[name])
            try:
                chunk[name] = np.broadcast_to(np.asarray(value, self._dtypes[name]), shape)
            except ValueError as error:
                raise InputError(f"The constant for input '{name}' does not fit it: {error}.") from error
        return chunk


class _Track:
    """A recording that is being played, and the part that it becomes."""

    def __init__(
        self,
        name: str,
        read: Callable[[int], Array],
        writing: Any,
        ports: Mapping[str, OutputPort],
        schema: Any,
        delay: int,
    ) -> None:
        self.read, self._late = read, delay
        self._name, self._ports, self._schema = name, ports, schema
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(writing)
        self._at = self._fed = 0
        self._block: list[Mapping[str, Array]] = []  # the outputs of one that has begun
        self._waiting: list[Any] = []

    def write(self, results: Mapping[str, Array], frames: int) -> None:
        """Add the outputs that so many frames gave."""
        self._block.append(results)
        self._fed += frames
        if self._fed % BLOCK == 0:
            self._end_block()

    def _end_block(self) -> None:
        """Make a row of the block, without what comes before the first frame is answered."""
        block, self._block = self._block, []
        if not block:
            return
        results = {name: np.concatenate([part[name] for part in block]) for name in self._ports}
        late = min(self._late, len(next(iter(results.values()))))
        self._late -= late
        results = {name: array[late:] for name, array in results.items()}
        if not len(next(iter(results.values()))):
            return
        arrays = [
            arrow_column(port, results[name], np.array([len(results[name])])) for name, port in self._ports.items()
        ]
        head = [pa.array([self._name]), pa.array([self._at], pa.int64())]
        self._waiting.append(pa.RecordBatch.from_arrays([*head, *arrays], schema=self._schema))
        self._at += len(next(iter(results.values())))
        if len(self._waiting) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting).combine_chunks())
            self._waiting = []

    def end(self, tail: Mapping[str, Array]) -> None:
        """Add what the end of the recording gave, and give the part its name."""
        try:
            self._end_block()
            self._block = [tail]
            self._end_block()
            self._flush()
        except BaseException:
            self.abandon()
            raise
        self._stack.close()

    def abandon(self) -> None:
        """Leave no part behind."""
        self._stack.__exit__(*(sys.exc_info() if sys.exc_info()[0] else (InterruptedError, InterruptedError(), None)))


def _opened(fs: Any, path: str, frame: tuple[int, ...], dtype: Any, overlap: int) -> Callable[[int], Array]:
    """Return a function that reads the next n frames of a file."""
    if path.lower().endswith(".npy"):
        if overlap:
            raise InputError(f"'{path}' holds frames as they are; overlap is for samples, of a .wav file.")
        return _numpy(fs, path, frame, dtype)
    file = fs.open(path, "rb")
    try:
        sound = wave.open(file, "rb")  # noqa: SIM115 - read from later
    except (wave.Error, EOFError) as error:
        raise InputError(
            f"'{path}' is no .wav file of integers ({error or 'it ends too early'}): convert it to PCM of 16 bits."
        ) from error
    channels, width, size = sound.getnchannels(), sound.getsampwidth(), int(np.prod(frame))
    _check_whole(path, sound.getnframes(), (int(fs.size(path)) - file.tell()) // (channels * width), channels * width)
    if not ((channels == size and not overlap) or channels == 1):
        raise InputError(
            f"'{path}' has {channels} channels and the model takes frames of {list(frame)}: mix it down to one channel."
        )
    new = size - overlap if channels == 1 else size  # samples of a frame that are its own
    before = np.zeros(overlap, np.float32)

    def read(count: int) -> Array:
        nonlocal before
        values = _samples(sound.readframes(count * new // channels), width)
        values = np.concatenate([before, values, np.zeros(-len(values) % new, np.float32)])
        before = values[len(values) - overlap :]
        frames = (len(values) - overlap) // new
        taken = as_strided(values, (frames, size), (new * values.itemsize, values.itemsize))
        return np.array(taken, dtype).reshape(-1, *frame)

    return read


def _check_whole(path: str, promised: int, there: int, width: int) -> None:
    """InputError if a sound file of so many bytes a sample holds fewer samples than its header says."""
    if there < promised and promised * width < _UNKNOWN:
        raise InputError(
            f"'{path}' ends before its last sample: its header says {promised:,}, and it holds {there:,}. "
            "Fetch or record it again; to play what is there, write the file anew with a header that fits."
        )


def _samples(data: bytes, width: int) -> Array:
    """Return PCM samples as float32 between -1 and 1."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8)[: len(wide) * 3].reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / np.float64(1 << 31)).astype(np.float32)
    whole = np.frombuffer(data[: len(data) // width * width], f"<i{width}")
    return (whole / np.float64(1 << (8 * width - 1))).astype(np.float32)


def _numpy(fs: Any, path: str, frame: tuple[int, ...], dtype: Any) -> Callable[[int], Array]:
    file = fs.open(path, "rb")
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = reader(file)
    except ValueError as error:
        raise InputError(f"'{path}' cannot be read as .npy: {error}.") from error
    if shape[1:] != frame or fortran or kind.kind not in "fiu":
        raise InputError(
            f"'{path}' holds {kind}{list(shape)}; the model takes numbers [frames, {str(list(frame))[1:]}."
        )
    size = kind.itemsize * int(np.prod(frame))
    if int(fs.size(path)) - file.tell() < shape[0] * size:
        raise InputError(f"'{path}' ends before its last frame; fetch it again.")
    left = shape[0]

    def read(count: int) -> Array:
        nonlocal left
        here = min(count, left)
        data = file.read(here * size)
        if len(data) < here * size:
            raise InputError(f"'{path}' ends before its last frame; fetch it again.")
        left -= here
        return np.frombuffer(data, kind).reshape(-1, *frame).astype(dtype, copy=False)

    return read
