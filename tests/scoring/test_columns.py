"""Every spelling of a sequence is read to its right result, or is told in a sentence: of the row, or of the column."""

from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import classifier, expected, scored, sequences, table

import fastlstm
from fastlstm.errors import InputError
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.scoring.scorer import ERROR_COLUMN, Scorer

ROWS = sequences(9)
NESTED = [row.tolist() for row in ROWS]


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def one_feature():
    return classifier(features=1)


def batch(column, kind=None) -> pa.RecordBatch:
    array = column if isinstance(column, pa.Array) else pa.array(column, kind)
    return pa.RecordBatch.from_arrays([pa.array(np.arange(len(array))), array], ["id", "x"])


def _struct(rows):
    fields = [pa.array([[step[i] for step in row] for row in rows], pa.list_(pa.float32())) for i in range(3)]
    return pa.StructArray.from_arrays(fields, ["a", "b", "c"])


def _steps(rows):
    kind = pa.struct([("a", pa.float32()), ("bc", pa.struct([("b", pa.float32()), ("c", pa.float32())]))])
    return pa.array([[{"a": s[0], "bc": {"b": s[1], "c": s[2]}} for s in row] for row in rows], pa.list_(kind))


def _dictionary(rows):
    return pa.DictionaryArray.from_arrays(pa.array(range(len(rows))), pa.array(rows, pa.list_(pa.list_(pa.float32()))))


F = pa.float32()
SPELLINGS = {
    "lists of lists": pa.array(NESTED, pa.list_(pa.list_(F))),
    "large lists": pa.array(NESTED, pa.large_list(pa.large_list(F))),
    "lists of fixed-size lists": pa.array(NESTED, pa.list_(pa.list_(F, 3))),
    "list views": pa.array(NESTED, pa.list_view(pa.list_(F))),
    "large list views": pa.array(NESTED, pa.large_list_view(pa.large_list_view(F))),
    "float64": pa.array(NESTED, pa.list_(pa.list_(pa.float64()))),
    "dictionary of lists": _dictionary(NESTED),
    "struct of lists": _struct(NESTED),
    "list of nested structs": _steps(NESTED),
    "a slice": pa.array([None, *NESTED, None], pa.list_(pa.list_(F))).slice(1, len(NESTED)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_sequence_gives_the_bits_of_the_row_alone(spelling, model):
    result = Scorer(model)(batch(SPELLINGS[spelling]))
    assert result.column("output").to_pylist() == expected(model, ROWS)
    assert result.column(ERROR_COLUMN).null_count == len(ROWS)
    assert result.column("id").to_pylist() == list(range(len(ROWS)))


NUMBERS = [[1, 2, -3], [4], [0, 5]]
KINDS = {
    "int8": (pa.int8(), NUMBERS),
    "int64": (pa.int64(), NUMBERS),
    "uint16": (pa.uint16(), [[1, 2, 3], [4], [0, 5]]),
    "float16": (pa.float16(), [[np.float16(v) for v in row] for row in NUMBERS]),
    "decimal": (pa.decimal128(9, 2), [[Decimal(v) for v in row] for row in NUMBERS]),
    "dictionary": (pa.dictionary(pa.int32(), F), NUMBERS),
}


def numbers(kind: str) -> tuple[pa.Array, list[np.ndarray]]:
    """Lists of such numbers, and the sequences that they are to the model."""
    value, rows = KINDS[kind]
    arrays = [np.array(row, np.float64).astype(np.float32)[:, None] for row in rows]
    if kind == "dictionary":
        encoded = pa.array([v for row in rows for v in row], F).dictionary_encode()
        return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, rows)]), pa.int32()), encoded), arrays
    return pa.array(rows, pa.list_(value)), arrays


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number_is_converted_as_run_converts_it(kind, one_feature, tmp_path):
    column, arrays = numbers(kind)
    given = batch(column)
    assert Scorer(one_feature)(given).column("output").to_pylist() == expected(one_feature, arrays)
    pq.write_table(pa.Table.from_batches([given]), tmp_path / "rows.parquet")
    fastlstm.score(one_feature, tmp_path / "rows.parquet", tmp_path / "out", {"input": "x"}, part_rows=2)
    assert scored(tmp_path / "out").column("output").to_pylist() == expected(one_feature, arrays)


def test_fixed_size_lists_are_sequences_of_that_length(one_feature):
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 4)
    found = Scorer(one_feature)(batch(column)).column("output").to_pylist()
    assert found == expected(one_feature, [row[:, None] for row in rows])


def test_plain_columns_side_by_side_are_the_steps_of_a_sequence(one_feature):
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    given = pa.RecordBatch.from_arrays([pa.array(c) for c in rows.T], ["t0", "t1", "t2"])
    found = Scorer(one_feature, {"input": "t*"})(given)
    assert found.column("output").to_pylist() == expected(one_feature, [row[:, None] for row in rows])
    assert found.schema.names == ["output", ERROR_COLUMN]


def test_list_columns_side_by_side_are_features(model):
    given = pa.RecordBatch.from_struct_array(_struct(NESTED))
    assert Scorer(model, {"input": ["a", "b", "c"]})(given).column("output").to_pylist() == expected(model, ROWS)


def test_nan_and_infinity_stay_in_their_row(model):
    rows = [row.copy() for row in sequences(6)]
    rows[2][0, 1], rows[4][-1, 0] = np.nan, np.inf
    found = Scorer(model)(batch([row.tolist() for row in rows], pa.list_(pa.list_(F)))).column("output").to_pylist()
    assert np.isnan(found[2]).all()
    assert [f for i, f in enumerate(found) if i != 2] == [f for i, f in enumerate(expected(model, rows)) if i != 2]


BAD = {
    "null row": (lambda rows: [*rows, None], "null in place of a sequence"),
    "null step": (lambda rows: [*rows, [[1.0, 2.0, 3.0], None]], "step 1: null"),
    "null value": (lambda rows: [*rows, [[1.0, 2.0, 3.0], [1.0, None, 3.0]]], "step 1: null"),
    "wrong width": (lambda rows: [*rows, [[1.0, 2.0, 3.0], [4.0]]], "step 1: 1 values where the model takes 3"),
    "no steps": (lambda rows: [*rows, []], "a sequence without steps"),
    "too long": (lambda rows: [*rows, [[1.0, 2.0, 3.0]] * 14], "14 steps, more than 13"),
    "beyond float32": (lambda rows: [*rows, [[1e300, 0.0, 0.0]]], "step 0: 1e+300 is beyond float32"),
}


@pytest.mark.parametrize("spelling", ["list", "large_list", "list_view"])
@pytest.mark.parametrize("wrong", BAD)
def test_a_row_that_does_not_fit_has_its_reason_and_the_others_their_bits(wrong, spelling, model):
    change, reason = BAD[wrong]
    outer = {"list": pa.list_, "large_list": pa.large_list, "list_view": pa.list_view}[spelling]
    column = pa.array(change(NESTED), outer(pa.list_(pa.float64())))
    found = Scorer(model, max_length=13)(batch(column))
    assert found.column("output").to_pylist() == [*expected(model, ROWS), None]
    assert found.column(ERROR_COLUMN).to_pylist() == [None] * len(ROWS) + [f"'x': {reason}"]
    with pytest.raises(InputError, match=f"Row 9 cannot be scored: 'x': {re.escape(reason)}"):
        Scorer(model, max_length=13, on_error="stop")(batch(column))


def test_rows_of_a_table_in_pieces_are_told_by_their_number_in_it(model):
    kind = pa.list_(pa.list_(F))
    pieces = [NESTED[:4], [None, NESTED[4]], [], NESTED[5:8], [[[1.0]], NESTED[8]]]
    found = Scorer(model)(pa.table({"x": pa.chunked_array([pa.array(piece, kind) for piece in pieces])}))
    told = found.column(ERROR_COLUMN).to_pylist()
    reasons = {4: "'x': null in place of a sequence", 9: "'x': step 0: 1 values where the model takes 3"}
    assert {row: reason for row, reason in enumerate(told) if reason} == reasons
    good = [output for output in found.column("output").to_pylist() if output]
    assert good == expected(model, ROWS)


def test_structs_of_unequal_sequences_are_told(model):
    fields = [pa.array([[1.0], [1.0, 2.0]], pa.list_(F)), pa.array([[1.0], [1.0]], pa.list_(F))]
    column = pa.StructArray.from_arrays([*fields, fields[0]], ["a", "b", "c"])
    found = Scorer(model)(
        batch(column),
    )
    assert found.column(ERROR_COLUMN).to_pylist() == [None, "'x': sequences of 1 and 2 steps side by side"]


def test_a_column_of_nulls_alone_is_rows_that_cannot_be_scored(model):
    found = Scorer(model, {"input": "x"})(batch(pa.nulls(2)))
    assert found.column(ERROR_COLUMN).to_pylist() == ["'x': null in place of a sequence"] * 2


REFUSED = {
    "strings": pa.list_(pa.list_(pa.string())),
    "one value a step": pa.list_(F),
    "lists too deep": pa.list_(pa.list_(pa.list_(F))),
    "one number": F,
    "booleans": pa.list_(pa.list_(pa.bool_())),
    "timestamps": pa.list_(pa.list_(pa.timestamp("us"))),
    "two fields": pa.list_(pa.struct([("a", F), ("b", F)])),
    "two lists side by side": pa.struct([("a", pa.list_(F)), ("b", pa.list_(F))]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_column_of_the_wrong_type_is_refused_before_anything_runs(kind, model):
    with pytest.raises(InputError, match=r"Column 'x' is .*: input 'input' takes a list of steps with 3 values each"):
        Scorer(model, {"input": "x"})(batch(pa.array([], REFUSED[kind])))


def test_ids_are_whole_numbers_and_an_id_beyond_the_table_is_its_rows_alone():
    rng = np.random.default_rng(0)
    weights = {
        "embedding.weight": rng.standard_normal((5, 4)).astype(np.float32),
        "lstm.weight_ih_l0": rng.standard_normal((16, 4)).astype(np.float32),
        "lstm.weight_hh_l0": rng.standard_normal((16, 4)).astype(np.float32),
    }
    model = fastlstm.from_state_dict(weights, layers="embedding | lstm | last", batch_first=True)
    rows = [[1, 2, 3], [4, 99, 0], [2, 2, 0], [0]]
    found = Scorer(model)(batch(rows, pa.list_(pa.int32())))
    good = [model(np.array([row]))[0].tolist() for row in rows if 99 not in row]
    assert found.column("output").to_pylist() == [good[0], None, *good[1:]]
    assert "outside its embedding table" in found.column(ERROR_COLUMN)[1].as_py()
    with pytest.raises(InputError, match="integers"):
        Scorer(model, {"input": "x"})(batch([[1.0]], pa.list_(F)))


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layouts_and_lengths_give_the_same_rows(batch_first, lengths, model):
    other = classifier(batch_first=batch_first, lengths=lengths)
    scorer = Scorer(other)
    assert scorer.ports.ragged == lengths
    assert scorer(table(ROWS)).column("output").to_pylist() == expected(model, ROWS)


@pytest.mark.parametrize("lengths", [False, True])
def test_whole_sequences_come_as_lists(lengths):
    model = classifier(layers="lstm | linear", lengths=lengths)
    found = Scorer(model)(table(ROWS))
    assert found.schema.field("output").type == pa.list_(pa.list_(F, 2))
    plain = classifier(layers="lstm | linear")
    assert found.column("output").to_pylist() == [plain(row[None])[0].tolist() for row in ROWS]


def test_with_lengths_a_row_without_steps_is_what_the_model_says_of_it():
    model = classifier(lengths=True, layers="lstm | hidden | linear")
    found = Scorer(model)(batch([NESTED[0], [], NESTED[1]], pa.list_(pa.list_(F))))
    empty = model.run({"input": np.zeros((1, 1, 3), np.float32), "lengths": np.array([0])})["output"][0]
    assert found.column("output")[1].as_py() == empty.tolist()
    assert found.column(ERROR_COLUMN).null_count == 3


@pytest.mark.parametrize("steps", [True, False])
def test_an_input_without_an_axis_of_rows_has_each_rows_own_value(steps):
    x = TensorSpec("x", ("batch", "time", 3))
    gain = TensorSpec("gain", ("time", 3) if steps else (3,))
    graph = Graph((x, gain), (TensorSpec("y", x.shape),), (Node("Mul", ("x", "gain"), ("y",)),), {})
    gains = [[[float(i)] * 3] * len(row) if steps else [float(i)] * 3 for i, row in enumerate(ROWS)]
    given = pa.table({"x": SPELLINGS["lists of lists"], "gain": gains})
    found = Scorer(fastlstm.Model(graph))(given)
    assert found.column("y").to_pylist() == [(row * i).tolist() for i, row in enumerate(ROWS)]


def test_a_model_whose_rows_influence_one_another_is_refused():
    spec = TensorSpec("x", ("batch", "time", 3))
    axes = np.array([0, 1])
    graph = Graph(
        (spec,),
        (TensorSpec("y", ("batch", "time", 3)),),
        (
            Node("ReduceMean", ("x", "axes"), ("m",), {"keepdims": 1, "noop_with_empty_axes": 0}),
            Node("Sub", ("x", "m"), ("y",)),
        ),
        {"axes": axes},
    )
    with pytest.raises(fastlstm.UnsupportedError, match="depends on the rows it is computed with"):
        Scorer(fastlstm.Model(graph))


def test_questions_that_only_the_user_can_answer_are_asked(model):
    given = pa.RecordBatch.from_arrays([SPELLINGS["lists of lists"]] * 2, ["a", "b"])
    with pytest.raises(InputError, match="Which column is the input 'input'"):
        Scorer(model)(given)
    with pytest.raises(InputError, match="there is no input 'y'"):
        Scorer(model, {"y": "a"})
    with pytest.raises(InputError, match="there is no output 'y'"):
        Scorer(model, outputs=["y"])
    with pytest.raises(InputError, match="expected the columns c, each once"):
        Scorer(model, {"input": "c"})(given)
    with pytest.raises(InputError, match="A column 'b' is kept and written"):
        Scorer(model, {"input": "a"}, outputs={"output": "b"})(given)
    assert Scorer(model, {"input": "a"}, outputs={"output": "b"}, keep=[])(given).schema.names == ["b", ERROR_COLUMN]
