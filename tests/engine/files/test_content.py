"""A model's bytes load as its file does, whatever the format; bytes that are no model are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from keras_files import layer, sequential, write_h5, write_keras

import fastlstm
from fastlstm.cli.demo import DATA
from fastlstm.converters.content import suffix_of

RNG = np.random.default_rng(0)


def dense(units: int, inputs: int) -> list[np.ndarray]:
    return [RNG.standard_normal((inputs, units)).astype(np.float32), np.zeros(units, np.float32)]


def files(folder: Path) -> dict[str, dict[str, object]]:
    """Write a model of each format; return the options that its reader needs, by file name."""
    module = torch.nn.LSTM(3, 4, batch_first=True).eval()
    x = torch.zeros(1, 5, 3)
    torch.save(module.state_dict(), folder / "a.pt")
    torch.save(module.state_dict(), folder / "b.pth", _use_new_zipfile_serialization=False)
    torch.jit.trace(module, (x,)).save(folder / "c.jit")
    torch.export.save(torch.export.export(module, (x,)), folder / "d.pt2")
    fastlstm.from_torch(module, (x,)).save(folder / "e.fastlstm")
    config = sequential((5, 3), layer("Dense", "head", units=2, activation="linear", use_bias=True))
    weights = {"head": dense(2, 3)}
    write_keras(folder / "f.keras", config, {"layers/dense": weights["head"]})
    write_h5(folder / "g.h5", config, {"head": dict(zip(("kernel:0", "bias:0"), weights["head"], strict=True))})
    (folder / "h.onnx").write_bytes((DATA / "forecaster.onnx").read_bytes())
    (folder / "i.safetensors").write_bytes((DATA / "forecaster.safetensors").read_bytes())
    rt = {"in_shape": [None, None, 3], "layers": [
        {"type": "dense", "activation": "", "shape": [None, None, 2], "weights": [a.tolist() for a in weights["head"]]}
    ]}  # fmt: skip
    (folder / "j.json").write_text(json.dumps(rt))
    layers = {"layers": "lstm", "batch_first": True}
    return {
        "a.pt": layers, "b.pth": layers, "c.jit": {"shapes": "input: float32[batch, time, 3]"}, "d.pt2": {},
        "e.fastlstm": {}, "f.keras": {}, "g.h5": {}, "h.onnx": {}, "i.safetensors": {"layers": "lstm | linear"},
        "j.json": {},
    }  # fmt: skip


def test_bytes_load_as_their_file_does(tmp_path, recwarn):
    for name, options in files(tmp_path).items():
        path = tmp_path / name
        from_file, from_bytes = fastlstm.load(path, **options), fastlstm.load(path.read_bytes(), **options)
        assert [str(spec) for spec in from_file.inputs] == [str(spec) for spec in from_bytes.inputs], name
        assert from_file.notes == from_bytes.notes
        assert suffix_of(path.read_bytes()) in (path.suffix, {".pth": ".pt", ".jit": ".pt"}.get(path.suffix))
        sizes = [2 if isinstance(size, str) else size for size in from_file.inputs[0].shape]
        x = RNG.standard_normal(sizes).astype(np.float32)
        named = {from_file.inputs[0].name: x}
        for one, other in zip(from_file.run(named).values(), from_bytes.run(named).values(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_bytes_warn_of_what_is_assumed_where_they_are_loaded():
    with pytest.warns(fastlstm.AssumptionWarning) as caught:
        fastlstm.load((DATA / "forecaster.safetensors").read_bytes(), layers="lstm | linear")
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 40, b"PK\x03\x04 broken", b"<html>"])
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(fastlstm.UnsupportedError, match="bytes"):
        fastlstm.load(content)


def test_a_damaged_model_is_refused_as_its_file_is(tmp_path):
    content = (DATA / "forecaster.onnx").read_bytes()[:-100]
    (tmp_path / "cut.onnx").write_bytes(content)
    for source, named in ((content, "^The content given is"), (tmp_path / "cut.onnx", "cut.onnx' is")):
        with pytest.raises(fastlstm.FileFormatError, match=named):
            fastlstm.load(source)
