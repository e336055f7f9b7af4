"""Golden samples: inputs, the Python engine's outputs for them, and the C program that replays them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastlstm.export.interface import Interface, Port
from fastlstm.graph import Graph
from fastlstm.graph.quantise import precisions, rounds_as_it_runs
from fastlstm.typing import Array

__all__ = ["Golden", "sequence", "test_program", "tolerance"]

TOLERANCES = {"float32": 1e-6, "int16": 2.0**-15, "int8": 2.0**-7}
"""Tolerances on targets without fused multiply-add, relative to the larger of 1 and the result: a few roundings; with
narrow weights a step of the data that they multiply, which may be rounded the other way.
"""

CHUNK = 23  # steps of a run in the test: not a multiple of any block
PER_LINE = 8


@dataclass(frozen=True)
class Golden:
    """Samples of an exported model.

    Attributes
    ----------
    steps : int
        1 for a model that does not stream.
    inputs, outputs : mapping of str to array
        By parameter: [steps, elements], or [elements] if they are the same for all steps.
    tails : mapping of int to mapping of str to array
        The frames that `finish` returns after a number of steps, by parameter; empty if it never returns any.
    tolerance : float
        How far results may be off on targets without fused multiply-add: see `tolerance`.
    """

    steps: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tails: Mapping[int, Mapping[str, Array]]
    tolerance: float


def tolerance(graph: Graph) -> float:
    """Return how far results may be off where a target has no fused multiply-add, times the larger of 1 and them."""
    narrow = set(precisions(graph).values()) or {"int8" if rounds_as_it_runs(graph) else "float32"}
    return max(TOLERANCES[precision] for precision in narrow)


def test_program(interface: Interface, golden: Golden) -> str:
    """Return ``N_test.c``."""
    n = interface.name
    arrays = [_array(port, "given", golden.inputs[port.parameter]) for port in interface.inputs]
    arrays += [_array(port, "wanted", golden.outputs[port.parameter]) for port in interface.outputs]
    if golden.tails:
        arrays += [_tails(interface, golden)]
    body = _STREAM if interface.streams else _CALL
    values = {
        "n": n,
        "arrays": "\n".join(arrays),
        "steps": str(golden.steps),
        "values": str(sum(array.size for array in golden.outputs.values())),
        "cuts": ", ".join(f"{cut}" for cut in sorted({golden.steps // 2, *_waiting(golden)})),
        "chunk": str(min(CHUNK, golden.steps)),
        "buffers": "\n".join(_buffer(interface, port) for port in interface.outputs),
        "w": " WEIGHTS," if interface.apart else "",
        "w_init": ", WEIGHTS" if interface.apart else "",
        "weights": _WEIGHTS if interface.apart else "",
        "in_at": " ".join(_given(interface, port) for port in interface.inputs),
        "out": ", ".join(port.parameter for port in interface.outputs),
        "compare": "\n".join(_comparison(interface, port) for port in interface.outputs),
        "finish": _finish(interface),
        "ends": "  ends(ran);" if golden.tails else "",
        "unit": "frames" if interface.hop == 1 else "steps",
        "tolerance": f"{golden.tolerance:g}",
    }
    text = (_HEAD + body + _FOOT).replace("@tails@", _TAILS if golden.tails else "")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _macro(interface: Interface, port: Port) -> str:
    many = len(interface.inputs if port in interface.inputs else interface.outputs) > 1
    return f"{interface.name}_{port.parameter.upper() if many else port.parameter.upper()[0]}_SIZE"


def _given(interface: Interface, port: Port) -> str:
    at = f" + at * {_macro(interface, port)}" if interface.streams and port.moves else ""
    return f"(const void *)(given_{port.parameter}{at}),"


def _buffer(interface: Interface, port: Port) -> str:
    if not (interface.streams and port.moves):
        return f"static {port.c_type} {port.parameter}[{_macro(interface, port)}];"
    room = f"CHUNK * {_macro(interface, port)}"
    if interface.tail:
        room += f" + {interface.name}_TAIL * {port.frame_elements}"
    return f"static {port.c_type} {port.parameter}[{room}];"


def _comparison(interface: Interface, port: Port) -> str:
    size, moves = _macro(interface, port), interface.streams and port.moves
    at, times = (f" + at * {size}", "n * ") if moves else ("", "")
    is_float = int(port.dtype == "float32")
    return f"    compare({port.parameter}, wanted_{port.parameter}{at}, {times}{size}, {is_float}, different);"


def _finish(interface: Interface) -> str:
    n, w = interface.name, ", WEIGHTS" if interface.apart else ""
    call = f"{n}_finish(&state{w}, {', '.join(port.parameter for port in interface.outputs)})"
    if not interface.tail:
        return f"  (void)steps_before;\n  if ({call} != 0) ++*different;"
    lines = [
        "  size_t row = 0, at = 0, frames;",
        "  while (tails[row].steps != steps_before) at += tails[row++].frames;",
        f"  frames = {call};",
        "  if (frames != tails[row].frames) ++*different;",
        "  if (frames > tails[row].frames) frames = tails[row].frames;",
    ]
    for port in interface.outputs:
        size, is_float = port.frame_elements, int(port.dtype == "float32")
        lines.append(
            f"  compare({port.parameter}, tail_{port.parameter} + at * {size}, frames * {size}, {is_float}, different);"
        )
    return "\n".join(lines)


def _waiting(golden: Golden) -> list[int]:
    """Return a number of steps after which frames still wait, if any do."""
    return sorted(golden.tails)[-2:-1] if len(golden.tails) > 2 else []


def _tails(interface: Interface, golden: Golden) -> str:
    """Return the frames that the end returns after each of several numbers of steps, and their counts."""
    parts = []
    for port in interface.outputs:
        arrays = [tail[port.parameter].reshape(-1) for tail in golden.tails.values()]
        parts.append(_array(port, "tail", np.concatenate(arrays)))
    first = interface.outputs[0]
    counts = [
        f"{{{steps}, {tail[first.parameter].size // first.frame_elements}}}" for steps, tail in golden.tails.items()
    ]
    parts.append(f"static const struct {{ size_t steps, frames; }} tails[] = {{{', '.join(counts)}}};")
    return "\n".join(parts)


def _array(port: Port, prefix: str, array: Array) -> str:
    words = np.ascontiguousarray(array, np.float32 if port.dtype == "float32" else np.int32).reshape(-1).view(np.uint32)
    text = [f"0x{word:08x}u" for word in words.tolist()]
    lines = [", ".join(text[i : i + PER_LINE]) for i in range(0, len(text), PER_LINE)]
    joined = ",\n  ".join(lines)
    return f"static const uint32_t {prefix}_{port.parameter}[{len(text)}] = {{\n  {joined}\n}};"


def sequence(arrays: Sequence[Array]) -> Array:
    """Return the arrays of all steps as one, [steps, elements]."""
    return np.stack([np.asarray(array).reshape(-1) for array in arrays])


_HEAD = """/* Replays golden samples of @n@: inputs, and what fastlstm in Python made of them, as bits.
   FASTLSTM_REPORT(format, ...) takes printf's place where there is none; FASTLSTM_NO_MAIN leaves only @n@_test. */
#include "@n@.h"
#include <string.h>
#ifndef FASTLSTM_REPORT
#include <stdio.h>
#define FASTLSTM_REPORT printf
#endif

#define STEPS @steps@
#define CHUNK @chunk@
@weights@
@arrays@

static @n@_state state, other;
@buffers@
static float worst;

/* Count the values that differ: in any bit, or by more than the tolerance where the target has other bits. */
static void compare(const void *got, const uint32_t *wanted, size_t count, int is_float, long *different) {
  const unsigned char *bytes = (const unsigned char *)got;
  size_t i;
  for (i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, bytes + 4 * i, 4);
    if (bits == wanted[i]) continue;
    if (is_float) {
      float a, b, off, size;
      memcpy(&a, &bits, 4);
      memcpy(&b, wanted + i, 4);
      if (a != a && b != b) continue;
      off = a > b ? a - b : b - a;
      size = b < 0 ? -b : b;
      if (size < 1) size = 1;
      if (!(off / size <= worst)) worst = off / size;
      if (!@n@_same_bits() && off <= @tolerance@f * size) continue;
    }
    ++*different;
  }
}
"""

_WEIGHTS = """#ifndef FASTLSTM_WEIGHTS
#error "define FASTLSTM_WEIGHTS as the address of the weights"
#endif
#define WEIGHTS FASTLSTM_WEIGHTS
"""

_STREAM = """
static void steps(size_t at, size_t n, long *different) {
    if (@n@_step(&state,@w@ @in_at@ @out@) == 0) ++*different;
@compare@
}

static void runs(size_t at, size_t n, long *different) {
    if (@n@_run(&state,@w@ @in_at@ @out@, n) == 0) ++*different;
@compare@
}

static void finish(size_t steps_before, long *different) {
@finish@
}
@tails@
/* Step by step; in chunks; and with the state taken out, put into another struct, and copied in the middle. */
static void replay(long *stepped, long *ran, long *restored) {
  static const size_t cuts[] = {@cuts@};
  static float flat[@n@_STATE_SIZE + 1];
  size_t at, cut;
  @n@_init(&state@w_init@);
  for (at = 0; at < STEPS; ++at) steps(at, 1, stepped);
  finish(STEPS, stepped);
  memset(&state, 0xA5, sizeof state);
  @n@_init(&state@w_init@);
  for (at = 0; at < STEPS; at += CHUNK) runs(at, STEPS - at < CHUNK ? STEPS - at : CHUNK, ran);
  finish(STEPS, ran);
@ends@
  for (cut = 0; cut < sizeof cuts / sizeof *cuts; ++cut) {
    @n@_init(&state@w_init@);
    for (at = 0; at < cuts[cut]; ++at) steps(at, 1, restored);
    flat[@n@_STATE_SIZE] = 1;
    @n@_get_state(&state, flat);
    memset(&other, 0x5A, sizeof other);
    @n@_init(&other@w_init@);
    @n@_set_state(&other, flat);
    if (flat[@n@_STATE_SIZE] != 1) ++*restored;
    memcpy(&state, &other, sizeof state);
    for (; at < STEPS; ++at) steps(at, 1, restored);
  }
}

int @n@_test(void);
int @n@_test(void) {
  long stepped = 0, ran = 0, restored = 0;
  replay(&stepped, &ran, &restored);
  FASTLSTM_REPORT("%s: %d @unit@, %d values; step %ld, run %ld, restored %ld different; ", "@n@", STEPS, @values@,
                  stepped, ran, restored);
  stepped += ran + restored;
"""

_TAILS = """
/* Sequences of other lengths, to their ends. */
static void ends(long *different) {
  size_t row, at, n;
  for (row = 0; row < sizeof tails / sizeof *tails; ++row) {
    @n@_init(&state@w_init@);
    for (at = 0; at < tails[row].steps; at += n) {
      n = tails[row].steps - at < CHUNK ? tails[row].steps - at : CHUNK;
      runs(at, n, different);
    }
    finish(tails[row].steps, different);
  }
}
"""

_CALL = """
static void calls(long *different) {
    @n@_call(&state,@w@ @in_at@ @out@);
@compare@
}

int @n@_test(void);
int @n@_test(void) {
  long stepped = 0, again = 0;
  @n@_init(&state@w_init@);
  calls(&stepped);
  memcpy(&other, &state, sizeof state);
  memcpy(&state, &other, sizeof state);
  calls(&again);
  FASTLSTM_REPORT("%s: %d call, %d values; first %ld, second %ld different; ", "@n@", 1, @values@, stepped, again);
  stepped += again;
"""

_FOOT = """  FASTLSTM_REPORT("largest difference %ld e-9; %s: %s\\n", (long)(worst < 2 ? worst * 1e9f : 2e9f),
                  @n@_same_bits() ? "same bits" : "within tolerance", stepped ? "FAILED" : "ok");
  return stepped != 0;
}

#ifndef FASTLSTM_NO_MAIN
int main(void) { return @n@_test(); }
#endif
"""
