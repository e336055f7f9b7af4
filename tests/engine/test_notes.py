"""What is assumed is said where the user is: in `Model.notes` and as a warning that names the caller's line."""

import warnings

import numpy as np
import pytest

import fastlstm

rng = np.random.default_rng(0)


def tied_state_dict():
    """Return the tensors of an LSTM and a Linear: what stands between or around them, nobody can tell."""
    shapes = {
        "lstm.weight_ih_l0": (32, 4), "lstm.weight_hh_l0": (32, 8), "lstm.bias_ih_l0": (32,), "lstm.bias_hh_l0": (32,),
        "head.weight": (3, 8), "head.bias": (3,),
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_assumptions_about_a_state_dict_are_warnings_at_the_callers_line():
    with pytest.warns(fastlstm.AssumptionWarning, match="no activation or skip connection comes between") as caught:
        model = fastlstm.from_state_dict(tied_state_dict())
    assert {str(warning.message) for warning in caught} == set(model.notes)
    assert {warning.filename for warning in caught} == {__file__}


def test_nothing_is_warned_of_where_nothing_was_assumed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fastlstm.from_state_dict(tied_state_dict(), layers="lstm | linear", batch_first=True)
    assert model.notes == ()


def test_a_precision_without_effect_is_said():
    with pytest.warns(fastlstm.AssumptionWarning, match="kept its weights"):
        fastlstm.from_state_dict(tied_state_dict(), layers="lstm | linear", batch_first=True, precision="int8")


def test_a_saved_model_keeps_its_notes_and_warns_no_more(tmp_path):
    with pytest.warns(fastlstm.AssumptionWarning):
        model = fastlstm.from_state_dict(tied_state_dict())
    model.save(tmp_path / "model.fastlstm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = fastlstm.load(tmp_path / "model.fastlstm")
    assert again.notes == model.notes
    with pytest.warns(fastlstm.AssumptionWarning, match="kept its weights") as caught:
        fastlstm.load(tmp_path / "model.fastlstm", precision="int8")
    assert not {str(warning.message) for warning in caught} & set(model.notes)
