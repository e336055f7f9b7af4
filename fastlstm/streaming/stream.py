"""The stream: one frame at a time, with the state kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastlstm.errors import InputError, counted
from fastlstm.runtime.busy import exclusive, in_use
from fastlstm.runtime.conversion import converted
from fastlstm.runtime.foreign import as_array, with_tensors
from fastlstm.runtime.native import Call, never
from fastlstm.streaming.engines import GraphRun, Streamed
from fastlstm.streaming.ports import Port, by_name, check_frames, check_out, checked_state, fits, frames_text, with_ones
from fastlstm.typing import Array

__all__ = ["Stream"]


class Stream:
    """A running sequence (or `batch` of them) with its own state.

    A model with several inputs takes a dict of frames by name; one with several outputs returns a dict. An input that
    does not change over time (a speaker's embedding, say) is passed with every call. A model that returns only the last
    time step gives one output per frame here. If a model takes fixed chunks and carries its own states, a step is one
    such chunk.

    A step takes `hop` input frames (1 for most models) and always returns the same number of output frames. Outputs
    that depend on later frames lag behind by `delay` frames: the first `delay` output frames are zeros, and `finish`
    returns the last ones.

    A stream serves one call at a time: if another thread's call is running, a call raises InputError. So does a call
    whose arguments do not fit; either way nothing has changed. Any number of streams of one model may run at once.

    A stream can be copied (`clone`, ``copy.copy``, ``copy.deepcopy``) and pickled: the copy starts from the same state
    and is independent from then on. Copies share the model; a pickled stream includes it.

    Parameters
    ----------
    model : Model
    batch : int
        Rows that advance together.
    state : mapping of str to str, optional
        State inputs and the outputs that return them, as for `Model.stream`.

    Attributes
    ----------
    hop : int
        Input frames per step.
    delay : int
        Output frames of zeros before the first result.
    batch : int

    Raises
    ------
    UnsupportedError
        If the model cannot stream.
    InputError
        If an argument does not fit.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> weights = {"gru.weight_ih_l0": np.ones((6, 3)), "gru.weight_hh_l0": np.ones((6, 2))}
    >>> model = fastlstm.from_state_dict(weights, layers="gru", batch_first=True)
    >>> x = np.ones((1, 5, 3), np.float32)
    >>> stream = model.stream()
    >>> steps = [stream.step(frame) for frame in x[0]]
    >>> np.array_equal(steps, model(x)[0][0])
    True
    """

    def __init__(self, model: Streamed, batch: int = 1, state: Mapping[str, str] | None = None) -> None:
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise InputError(f"batch should be a positive integer; got {batch!r}.")
        engine = model.streaming_engine(state)
        self.batch = batch
        self._model, self._pairs = model, dict(state or {})
        try:
            self._run = engine.open(batch)
        except MemoryError as error:
            raise InputError(f"There is not enough memory for a stream of {batch} rows.") from error
        self._busy = self._run.busy
        self._inputs: dict[str, Port] = engine.inputs
        self._outputs: dict[str, Port] = engine.outputs
        # The axis missing from an array whose frames have no batch axis.
        self._lone = "B" if batch == 1 else ""
        self._by_call, self._finished = engine.by_call, False
        self.hop: int = engine.hop
        self.delay: int = engine.delay
        self._rows = engine.rows
        self._by_frame = self.hop == 1 and set(self._rows.values()) == {1}  # a step has no time axis
        # Each input's dtype, and a frame's shapes: without a batch axis, with one, and as the model takes it.
        self._frames = {
            name: (np.dtype(p.dtype), p.shape(1, batch, "T" + self._lone), p.shape(1, batch, "T"), p.shape(1, batch))
            for name, p in self._inputs.items()
        }
        self._begin_entries()

    def _begin_entries(self) -> None:
        """Make the entries for a frame, for chunks, and for chunks of one row that nevertheless have a batch axis."""
        several = self.batch > 1
        self._one: Call = self._run.entry(1, time_axis=False, batch_axis=several)
        self._chunk: Call = self._run.entry(0, time_axis=True, batch_axis=several)
        self._full_chunk: Call = never if several else self._run.entry(0, time_axis=True, batch_axis=True)

    def step(self, frame: Any, out: Any = None) -> Any:
        """Advance by one time step, or by one hop of them.

        Parameters
        ----------
        frame : array [features], or [batch, features]
            (ids: a number, or [batch]); with several inputs a dict of them. Axes of size 1 in front may be left
            out ([257] for [1, 1, 257]), and so may that of a single feature. With a `hop` of more than one frame
            [hop, features], or [hop, batch, features].
        out : array of the result's shape and dtype, or dict of them, optional
            An array to write to and return instead of a new one.

        Returns
        -------
        array [width] for a frame without a batch axis, else [batch, width]; with several outputs a dict
            With a hop of more than one frame, or several output frames per step, there is an axis for them in front.
            Zeros during the delay.
        """
        y = self._one(frame) if out is None else self._one(frame, out)
        if y is not None:
            return y
        busy = self._busy
        try:
            del busy.free
        except AttributeError:
            raise in_use("stream") from None
        try:
            return self._step(frame, out)
        finally:
            busy.free = None

    @with_tensors
    def _step(self, frame: Any, out: Any) -> Any:
        """Advance by a frame that the entry did not accept."""
        self._check_unfinished()
        if not self._by_frame:
            return self._step_hop(frame, out)
        arrays, lone = self._usual(frame) or self._arrays(frame, "A frame", without="T")
        dropped = "T1" + lone
        if out is not None:
            shapes = {name: port.shape(1, self.batch, dropped) for name, port in self._outputs.items()}
            check_out(self._outputs, out, shapes)
        before = self._run.before()
        try:
            results = self._run.advance(arrays, 1)
            results = {name: self._shown(port, results[name], dropped) for name, port in self._outputs.items()}
            return self._answer(results, out)
        except BaseException:
            self._run.restore(before)
            raise

    def _step_hop(self, frames: Any, out: Any) -> Any:
        """Advance by one hop; the first axis holds its frames one after another, and likewise the outputs'."""
        arrays, lone = self._hop_arrays(frames)
        shapes = {
            name: (*self._time(name), *port.shape(1, self.batch, "T" + lone)) for name, port in self._outputs.items()
        }
        if out is not None:
            check_out(self._outputs, out, shapes)
        before = self._run.before()
        try:
            results = self._run.advance(arrays, 1)
            shown = {}
            for name, port in self._outputs.items():
                result = self._shown(port, results[name], lone)
                axis = "".join(a for a in port.axes if a not in lone).index("T") if "T" in port.axes else 0
                result = np.moveaxis(result, axis, 0)
                shown[name] = result if self._time(name) else result[0]
            return self._answer(shown, out)
        except BaseException:
            self._run.restore(before)
            raise

    def _time(self, name: str) -> tuple[int, ...]:
        """Return the leading sizes of a step's output: its number of frames, if it may have several."""
        several = "T" in self._outputs[name].axes and (self.hop > 1 or self._rows[name] > 1)
        return (self._rows[name],) if several else ()

    def _hop_arrays(self, frames: Any) -> tuple[dict[str, Array], str]:
        """Return what `_arrays` returns for one hop of frames."""
        if self.hop == 1:
            return self._arrays(frames, "A frame", without="T")
        chunk = {}
        for name, array in by_name(self._inputs, frames).items():
            port = self._inputs[name]
            if "T" not in port.axes:
                chunk[name] = array
                continue
            given = with_ones(np.asarray(array), (self.hop, *port.shape(1, self.batch, "T" + self._lone)))
            lone = self._lone if given.ndim < len(port.axes) else ""
            shapes = [(self.hop, *port.shape(1, self.batch, "T" + some)) for some in dict.fromkeys((self._lone, ""))]
            what = "A hop" if len(self._inputs) == 1 else f"A hop of '{name}'"
            check_frames(what, port, given, shapes)
            chunk[name] = np.moveaxis(given, 0, "".join(a for a in port.axes if a not in lone).index("T"))
        return self._arrays(chunk, "A hop")

    def push(self, chunk: Any, out: Any = None) -> Any:
        """Advance by n time steps, a multiple of `hop`.

        Parameters
        ----------
        chunk : array [n, features], or with a batch axis the model's own layout
            With several inputs a dict of them, all of n frames. A single feature needs no axis: [n].
        out : array of the result's shape and dtype, or dict of them, optional
            An array to write to and return instead of a new one. It may overlap the chunk.

        Returns
        -------
        array [n, width], or with a batch axis the model's own layout; with several outputs a dict
        """
        for call in (self._chunk, self._full_chunk):
            known = call(chunk) if out is None else call(chunk, out)
            if known is not None:
                return known
        busy = self._busy
        try:
            del busy.free
        except AttributeError:
            raise in_use("stream") from None
        try:
            return self._push(chunk, out)
        finally:
            busy.free = None

    @with_tensors
    def _push(self, chunk: Any, out: Any) -> Any:
        """Advance by a chunk of frames that the entries did not accept."""
        self._check_unfinished()
        if self._by_call:
            stacks, still, steps, lone = self._chunks(chunk)
        else:
            arrays, lone = self._arrays(chunk, "A chunk")
            steps = self._steps(arrays)
        if out is not None:
            shapes = {
                name: (() if "T" in port.axes else (steps,)) + port.shape(steps * self._rows[name], self.batch, lone)
                for name, port in self._outputs.items()
            }
            check_out(self._outputs, out, shapes)
        before = self._run.before()
        try:
            if self._by_call and isinstance(self._run, GraphRun):
                results = self._run.calls(stacks, still, steps)
            else:
                results = self._run.advance(arrays, steps)
            results = {name: self._shown(port, results[name], lone) for name, port in self._outputs.items()}
            return self._answer(results, out)
        except BaseException:
            self._run.restore(before)
            raise

    def __repr__(self) -> str:
        return f"<fastlstm.Stream of {self._model!r}: {counted(self.batch, 'row')}>"

    def _repr_html_(self) -> str:
        from fastlstm.reporting.tables import facts_html  # for notebooks

        hop = "a step takes one frame" if self.hop == 1 else f"a step takes {self.hop} frames"
        late = f"outputs come {self.delay} frames later" if self.delay else "no delay"
        facts = {
            "frame": frames_text(self._inputs, self.batch),
            "output": frames_text(self._outputs, self.batch),
            "pace": f"{hop}; {late}",
            "rows": self.batch,
        }
        return facts_html(facts, "fastlstm.Stream")

    @exclusive("stream")
    def finish(self) -> Any:
        """End the sequence: return the outputs that were waiting for later frames.

        The steps' outputs without the first `delay` frames, followed by these, are those of the whole run. The stream
        has to be reset, or given a state, before it takes frames again.

        Returns
        -------
        array [n, width], for several rows in the model's own layout; with several outputs a dict
            n is `delay`, less if the sequence was shorter; 0 for a model that does not look ahead.
        """
        self._check_unfinished()
        dropped = self._lone
        tails = {name: self._shown(self._outputs[name], tail, dropped) for name, tail in self._run.finish().items()}
        self._end()
        return self._answer(tails, None)

    def _end(self) -> None:
        """Take no frames until a reset."""
        self._finished = True
        self._one = self._chunk = self._full_chunk = never

    def _check_unfinished(self) -> None:
        if self._finished:
            raise InputError("This stream has finished; call reset, or set its state, before it takes frames again.")

    def _go_on(self) -> None:
        """Take frames again."""
        if self._finished:
            self._finished = False
            self._begin_entries()

    def blank_frame(self) -> Any:
        """Return a frame of zeros, or a hop of them, with the shape and dtype that `step` takes."""
        blank = {}
        for name, port in self._inputs.items():
            shape = [size or 1 for size in port.shape(1, self.batch, "T" + self._lone)]
            hop = [self.hop] if self.hop > 1 and "T" in port.axes else []
            blank[name] = np.zeros(hop + shape, port.dtype)
        return next(iter(blank.values())) if len(blank) == 1 else blank

    def blank_chunk(self, steps: int) -> Any:
        """Return `steps` frames of zeros, rounded up to whole hops, with the shape and dtype that `push` takes."""
        steps = -(-steps // self.hop) * self.hop
        if self._by_call:
            blank = {
                name: np.stack([frame] * steps) for name, frame in by_name(self._inputs, self.blank_frame()).items()
            }
        else:
            blank = {
                name: np.zeros([size or 1 for size in port.shape(steps, self.batch, self._lone)], port.dtype)
                for name, port in self._inputs.items()
            }
        return next(iter(blank.values())) if len(blank) == 1 else blank

    @exclusive("stream")
    def warmup(self, *chunks: int, frame: Any = None) -> None:
        """Do now what would slow down a first step, and first chunks of these lengths; the state does not change.

        Code is compiled or loaded, memory allocated, and every page of it touched. This runs on frames of zeros, or on
        `frame` if the model cannot take zeros.
        """
        kept = self._run.state()
        try:
            self._run.warmup()
            frame = self.blank_frame() if frame is None else frame
            for _ in range(3):
                y = self._step(frame, None)
                self._one(frame, y, self._busy)
            for chunk in map(self.blank_chunk, chunks):
                for _ in range(3):
                    y = self._push(chunk, None)
                    self._chunk(chunk, y, self._busy)
        finally:
            self._run.set_state(kept)

    def clone(self) -> Stream:
        """Return a new stream of the same model that goes on from this one's state."""
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._model, self.batch, self._pairs), self._contents()

    @exclusive("stream")
    def _contents(self) -> tuple[dict[str, Array], bool]:
        return self._run.state(), self._finished

    def __setstate__(self, contents: tuple[dict[str, Array], bool]) -> None:
        state, finished = contents
        self._run.set_state(state)
        if finished:
            self._end()

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        return copy.copy(self)  # a model holds no state: copies of a stream share it, and its weights

    @exclusive("stream")
    def reset(self) -> None:
        """Go back to the initial state: zero, or the model's own."""
        self._run.reset()
        self._go_on()

    @property
    @exclusive("stream")
    def state(self) -> dict[str, Array]:
        """A copy of the state: arrays [batch, size] by name, the model's own in its shapes; assign to restore it."""
        return self._run.state()

    @state.setter
    def state(self, value: Mapping[str, Any]) -> None:
        self._set_state(checked_state(value, self._run.shapes, "stream"))

    @exclusive("stream")
    def _set_state(self, checked: Mapping[str, Array]) -> None:
        self._run.set_state(checked)
        self._go_on()

    # ------------------------------------------------------------ arrays in and out

    def _usual(self, given: Any) -> tuple[dict[str, Array], str] | None:
        """Return what `_arrays` would, if the frame's arrays are exactly as expected, else None."""
        named = given if isinstance(given, Mapping) else dict.fromkeys(self._inputs, given)
        if len(named) != len(self._frames):
            return None
        arrays, lone = {}, ""
        for name, (dtype, alone, with_rows, full) in self._frames.items():
            array = named.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or not array.flags.c_contiguous:
                return None
            if array.shape == alone:
                lone = self._lone if alone != with_rows else lone
            elif array.shape != with_rows or lone:
                return None
            arrays[name] = array.reshape(full)
        # All of them have a batch axis, or none has.
        both = lone and any(named[n].shape == f[2] != f[1] for n, f in self._frames.items())
        return None if both else (arrays, lone)

    def _arrays(self, given: Any, what: str, without: str = "") -> tuple[dict[str, Array], str]:
        """Return the inputs in the model's own layout, and the axis that they lacked."""
        named = by_name(self._inputs, given)
        lone = self._lone
        for name, port in self._inputs.items():
            expected = len(port.axes) - sum(axis in without for axis in port.axes)
            if self._lone and "B" in port.axes and np.ndim(named[name]) == expected:
                lone = ""
        arrays = {}
        for name, port in self._inputs.items():
            array = as_array(named[name], what if len(self._inputs) == 1 else f"{what} of '{name}'")
            which = what if len(self._inputs) == 1 else f"{what} of '{name}'"
            chosen = port.shape("n", self.batch, without + lone)
            shapes = [port.shape("n", self.batch, without)]
            if self._lone and "B" in port.axes:
                shapes.append(port.shape("n", self.batch, without + "B"))
            array = with_ones(array, chosen)
            if array.ndim != len(chosen) and any(array.ndim == len(shape) for shape in shapes):
                shapes = [chosen]  # the inputs have to agree on whether there is a batch axis
            check_frames(which, port, array, shapes)
            for i, axis in enumerate(port.axes):
                if axis in without + lone and axis in "TB":
                    array = np.expand_dims(array, i)
            arrays[name] = np.asarray(converted(array, port.dtype, which), order="C")
        return arrays, lone

    def _steps(self, arrays: Mapping[str, Array]) -> int:
        counts = {n: arrays[n].shape[p.axes.index("T")] for n, p in self._inputs.items() if "T" in p.axes}
        if len(set(counts.values())) > 1:
            raise InputError(f"All inputs should have the same number of frames; got {counts}.")
        frames = int(next(iter(counts.values())))
        if frames % self.hop:
            raise InputError(f"This stream takes frames by hops of {self.hop}; got {frames}. Keep the rest for later.")
        return frames // self.hop

    def _shown(self, port: Port, array: Array, dropped: str) -> Array:
        """Return an output without the axes that the frames lacked."""
        axes = port.axes
        if "T" not in axes and array.ndim > len(axes):
            axes = "T" + axes  # for a chunk, an axis for its frames
        if "T" in dropped:
            dropped += "1"
        return array.reshape([size for axis, size in zip(axes, array.shape, strict=True) if axis not in dropped])

    def _answer(self, results: dict[str, Array], out: Any) -> Any:
        if out is not None:
            targets = check_out(self._outputs, out, {name: result.shape for name, result in results.items()})
            for name, target in targets.items():
                target[...] = results[name]
            return out
        return next(iter(results.values())) if len(results) == 1 else results

    def _chunks(self, chunks: Any) -> tuple[dict[str, Array], dict[str, Array], int, str]:
        """Return the inputs of a model that takes one chunk per call, in its own layout.

        Those with a leading axis for the chunks, those that are the same for all, the number of chunks, and the axis
        that they lacked.
        """
        named = {name: as_array(value, f"'{name}'") for name, value in by_name(self._inputs, chunks).items()}
        for name, array in named.items():
            chunk = self._inputs[name].shape(1, self.batch, self._lone)
            if array.ndim > 1 and len(array) and not fits(chunk, array.shape):
                named[name] = array.reshape(len(array), *with_ones(array[0], chunk).shape)
        many = {name for name, port in self._inputs.items() if named[name].ndim == len(port.axes) + 1}
        if not many:  # their frames lack a batch axis
            many = {
                name for name, port in self._inputs.items() if named[name].ndim == len(port.shape(1, 1, self._lone)) + 1
            }
        counts = {len(named[name]) for name in many}
        if len(counts) != 1:
            raise InputError(
                f"Expected n chunks, each as `step` takes them; got {[list(a.shape) for a in named.values()]}."
            )
        (count,) = counts
        if not count:
            raise InputError("Expected at least one chunk; got none.")
        first, lone = self._arrays({n: array[0] if n in many else array for n, array in named.items()}, "A chunk")
        stacks = {
            name: converted(named[name], first[name].dtype, "A chunk").reshape(count, *first[name].shape)
            for name in many
        }
        return stacks, {name: array for name, array in first.items() if name not in many}, count, lone
