"""The builder that collects a segment's slots and kernel calls while `build.py` walks its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fastlstm.errors import UnsupportedError
from fastlstm.graph import Graph
from fastlstm.lowering.pack import integer_panels, panels_of
from fastlstm.program.arguments.rows import Move
from fastlstm.program.program import Instruction, Slot
from fastlstm.runtime.connections import State
from fastlstm.target import FLOAT32, Target, WeightFormat
from fastlstm.target.limits import BYTE_OFFSET
from fastlstm.typing import Array

__all__ = ["LAST_STAGE", "Builder", "packed_panels", "quantised"]

LAST_STAGE = 1 << 30


@dataclass
class Builder:
    """Collects slots and instructions while the nodes of a segment are walked in order."""

    graph: Graph
    labels: Mapping[str, str]
    target: Target
    slots: list[Slot] = field(default_factory=list)
    steps: list[tuple[int, Instruction, tuple[int, ...]]] = field(default_factory=list)  # stage, what, slots used
    place: dict[str, int] = field(default_factory=dict)  # value -> slot
    stage: dict[str, int] = field(default_factory=dict)  # value -> stage that makes it
    features: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    masks: list[tuple[int, str, bool]] = field(default_factory=list)
    lengths: str | None = None  # None before the first recurrent layer
    needs_step: str = ""
    kernels: dict[str, str] = field(default_factory=dict)  # first output of a node -> the kernel that computes it
    layer: str = ""  # the name of the current node
    exact: set[int] = field(default_factory=set)  # slots that are written without padding lanes

    def slot(self, slot: Slot) -> int:
        """Add a slot; return its number."""
        self.slots.append(slot)
        return len(self.slots) - 1

    def buffer(self, name: str, width: int) -> int:
        """Add a slot for a value's rows, padded to whole vectors."""
        lanes = self.target.lanes
        kind = "time" if "T" in self.labels.get(name, "T") else "row"
        return self.slot(Slot(name, kind, panels_of(width, lanes) * lanes))

    def emit(self, stage: int, instruction: Instruction, *used: int) -> None:
        """Add a kernel call to a stage; `used` holds the slots it reads and writes."""
        alone = instruction.alone and tuple(replace(step, layer=self.layer) for step in instruction.alone)
        self.steps.append((stage, replace(instruction, layer=self.layer, alone=alone), used))

    def read(self, name: str, features: int) -> int:
        """Return the slot of a value, making it an input of the segment if no earlier node produces it.

        Raises
        ------
        UnsupportedError
            If the value is known to have another number of features, so that a kernel would read past its rows.
        """
        if name not in self.place:
            self.place[name] = self.slot(Slot(name, "external", features or 1))
            self.stage[name] = 0 if "T" in self.labels[name] else LAST_STAGE
            self.features[name] = features
            self.inputs[name] = (self.place[name], self.labels[name], features)
        if self.features[name] != features:
            raise UnsupportedError(
                f"'{name}' is read as rows of {features} features, and has {self.features[name]}. "
                "The sizes of the layers that make and read it have to agree."
            )
        return self.place[name]

    def read_padded(self, name: str, features: int) -> int:
        """Return a slot whose rows may be read in whole vectors, copying the caller's arrays."""
        at = self.read(name, features)
        if self.slots[at].kind != "external":
            return at
        key = f"{name} (copied)"
        if key not in self.place:
            kind = "time" if "T" in self.labels[name] else "row"
            lanes = self.target.lanes
            self.place[key] = self.slot(Slot(key, kind, panels_of(features, lanes) * lanes))
            move = Instruction("movement.move", (), Move(at, self.place[key], 0, 0, features), "copy")
            self.emit(self.stage[name], move, at, self.place[key])
        return self.place[key]

    def constant(self, row: Array) -> int:
        """Add a slot with one row for all steps and batch rows."""
        return self.slot(Slot("constant", "constant", row.size, value=row))

    def made(self, name: str, slot: int, features: int, stage: int) -> None:
        """Record which slot holds a value and which stage computes it."""
        self.place[name], self.features[name], self.stage[name] = slot, features, stage


def packed_panels(
    target: Target, weight: Array, panels: Array, scales: Array | None, recurrent: bool = False
) -> tuple[Array, WeightFormat]:
    """Return a weight's panels as the kernels read them, and their format.

    `recurrent` weights multiply a layer's own outputs: if both have 8 bits, four products are computed at once.
    """
    if scales is None:
        return panels, FLOAT32
    form = target.weights(8 * weight.dtype.itemsize)
    together = form.together(recurrent)
    offset = BYTE_OFFSET if recurrent and form.unsigned else 0
    return integer_panels(panels, scales, form.bits, together, offset), form


def quantised(form: WeightFormat, k: int) -> tuple[int, str]:
    """Return an instruction's fields on its weights: the values of a row that it quantises, and a note."""
    return (0, "") if form.bits == 32 else (k, f"int{form.bits}")
