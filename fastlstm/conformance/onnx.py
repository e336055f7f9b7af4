"""``python -m fastlstm.conformance.onnx``: ONNX's own test cases, which of them run here, and why the others do not.

The cases come with the package onnx (``onnx.backend.test``); nothing is downloaded. A case is *claimed* if every
operator in it is read by `fastlstm.converters.onnx.load`. Claimed cases run through `fastlstm.onnx_backend`, but for
those that `EXCLUDED` names with a reason; the reasons hold only as long as the cases fail. ``--write FILE`` puts the
table into a file: ``docs/onnx.md`` is made so, for the version of onnx that it names.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlstm.converters.onnx.graph import NEWEST_OPSET, OLDEST_OPSET
from fastlstm.converters.onnx.operators import OPERATORS
from fastlstm.converters.onnx.opsets import FORMS
from fastlstm.converters.onnx.recurrent import ATTRIBUTES as RECURRENT
from fastlstm.errors import DependencyError
from fastlstm.onnx_backend import FastLSTMBackend
from fastlstm.operators.onnx_reference import REFERRED

try:
    import onnx
    from onnx.backend.test import BackendTest
    from onnx.backend.test.loader import load_model_tests
except ImportError:
    raise DependencyError.missing("onnx", "onnx", "Running ONNX's test cases") from None

__all__ = ["CLAIMED", "EXCLUDED", "KINDS", "UNCLAIMED", "Case", "cases", "main", "outcome", "table"]

CLAIMED = frozenset({*OPERATORS, *FORMS, *RECURRENT, *REFERRED})
"""The operators of ai.onnx that are read."""

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
"""The kinds of cases that the package holds whole; the others would be downloaded."""

EXCLUDED: Mapping[str, str] = {
    r"_bf16|_bfloat16|BFLOAT16": "bfloat16: NumPy has no such numbers; models in it run in float32",
    r"FLOAT8|float8|_e[45]m[0-9]|_e8m0|FLOAT4|float4": "8-bit and 4-bit floats",
    r"U?INT[24](_|$)|_u?int[24](_|$)": "2-bit and 4-bit integers",
    r"string": "strings",
    r"^test_training_dropout": "training: results would not repeat",
    r"_opt$|^test_loop16_seq_none$": "values of the optional type",
    r"^test_scan_sum$": "Scan of opset 8, another operator than Scan since opset 9",
}
"""What keeps a claimed case from running: a pattern of its name, and the reason."""

UNCLAIMED: Mapping[str, str] = {
    r"^String|^Regex|^Tf": "text: strings are not read",
    r"^Optional": "values of the optional type",
    r"^SequenceMap": "a body for each element of a sequence",
    r"^ImageDecoder": "decodes files in formats of its own",
    r"^Bernoulli": "random: results would not repeat",
}
"""Why an operator is not claimed: a pattern of its name, and the reason."""


@dataclass(frozen=True)
class Case:
    """One of ONNX's test cases.

    Attributes
    ----------
    name : str
    kind : str
        One of `KINDS`.
    operators : frozenset of str
        All that occur in it.
    subject : str
        The operator that it is about; "" where it is about several.
    opset : int
    """

    name: str
    kind: str
    operators: frozenset[str]
    subject: str
    opset: int

    @property
    def is_claimed(self) -> bool:
        """Whether every operator in it is read."""
        return self.operators <= CLAIMED

    @property
    def reason(self) -> str:
        """Why it is excluded; empty if it is not."""
        if self.opset < OLDEST_OPSET:
            return f"opset {self.opset}: models are read from opset {OLDEST_OPSET} on"
        return next((why for pattern, why in EXCLUDED.items() if re.search(pattern, self.name)), "")


def cases() -> list[Case]:
    """Return all cases of ai.onnx, by kind and name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases divide by zero on purpose
        loaded = [(kind, case) for kind in KINDS for case in load_model_tests(kind=kind)]
    found = (_case(kind, case) for kind, case in loaded)
    return sorted((c for c in found if c is not None), key=lambda c: (KINDS.index(c.kind), c.name))


def _case(kind: str, case: Any) -> Case | None:
    model = case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    nodes = list(_nodes(model.graph))
    if any(node.domain not in ("", "ai.onnx") for node in nodes):
        return None
    alone = len(model.graph.node) == 1 and not case.name.endswith("_expanded")
    subject = model.graph.node[-1].op_type if kind == "node" and alone else ""
    return Case(case.name, kind, frozenset(node.op_type for node in nodes), subject, opsets.get("", 1))


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def outcome(chosen: Sequence[Case]) -> dict[str, str]:
    """Run cases; return for each that fails its name and the first line of what went wrong."""
    wanted = {f"{case.name}_cpu": case.name for case in chosen}
    runner = BackendTest(FastLSTMBackend)
    found = {
        wanted[name]: _complaint(tests(name), name)
        for tests in runner.test_cases.values()
        for name in sorted(wanted.keys() & set(vars(tests)))
    }
    return {name: complaint for name, complaint in found.items() if complaint}


def _complaint(test: Any, name: str) -> str:
    """Run one test; return the first line of what went wrong, empty if nothing did."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(test, name)()
    except Exception as error:  # noqa: BLE001 - a case may fail in any way
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def table(all_cases: Sequence[Case], failed: Mapping[str, str]) -> str:
    """Return the page: what is claimed, what passed, what is excluded and why."""
    claimed = [case for case in all_cases if case.is_claimed]
    rows = [
        _row(f"`{op}`", _versions(op), [case for case in claimed if case.subject == op], failed)
        for op in sorted(CLAIMED, key=lambda op: (op not in RECURRENT, op))
    ]
    rows += [
        _row("operators written out as functions", "", [c for c in claimed if c.name.endswith("_expanded")], failed),
        *(
            _row(f"models: {kind}", "", [c for c in claimed if c.kind == kind], failed)
            for kind in KINDS
            if kind != "node"
        ),
    ]
    rest = [c for c in claimed if c.kind == "node" and not c.subject and not c.name.endswith("_expanded")]
    rows += [_row("several operators", "", rest, failed), _row("**all claimed**", "", claimed, failed)]
    unclaimed = sorted({case.subject for case in all_cases if case.subject and case.subject not in CLAIMED})
    return "\n".join(
        [
            "# ONNX conformance",
            "",
            f"The test cases of onnx {onnx.__version__}, run through `fastlstm.onnx_backend`. Written by "
            "`python -m fastlstm.conformance.onnx --write docs/onnx.md`.",
            "",
            f"An operator is claimed from opset {OLDEST_OPSET} to {NEWEST_OPSET}; its versions are the opsets at which "
            "ONNX changed it. Excluded cases are named below with the reason. The operators "
            f"{', '.join(op for op in REFERRED if op not in OPERATORS)} run through ONNX's reference implementation.",
            "",
            "| operator | versions | passed | cases | excluded |",
            "|---|---|---:|---:|---|",
            *rows,
            "",
            "## Excluded cases",
            "",
            *_exclusions(claimed),
            "## Operators with cases that are not claimed",
            "",
            *(
                f"- {op}: {next(why for pattern, why in UNCLAIMED.items() if re.search(pattern, op))}"
                for op in unclaimed
            ),
            "- the domains ai.onnx.ml, ai.onnx.training and ai.onnx.preview: no operators of recurrent networks",
            "",
        ]
    )


def _row(label: str, versions: str, chosen: Sequence[Case], failed: Mapping[str, str]) -> str:
    passed = sum(not case.reason and case.name not in failed for case in chosen)
    reasons: dict[str, int] = {}
    for case in chosen:
        why = case.reason or ("fails" if case.name in failed else "")
        if why:
            reasons[why.split(":")[0]] = reasons.get(why.split(":")[0], 0) + 1
    excluded = ", ".join(f"{count} {why}" for why, count in reasons.items())
    return f"| {label} | {versions} | {passed} | {len(chosen)} | {excluded} |"


def _versions(op: str) -> str:
    """Return the opsets at which the operator changed, from the one in force at the oldest opset on."""
    since = sorted(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain)
    oldest = max((v for v in since if v <= OLDEST_OPSET), default=OLDEST_OPSET)
    return ", ".join(str(version) for version in since if oldest <= version <= NEWEST_OPSET)


def _exclusions(claimed: Sequence[Case]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for case in claimed:
        if case.reason:
            reasons.setdefault(case.reason, []).append(case.name)
    for why, names in sorted(reasons.items()):
        yield f"**{why}** ({len(names)}): {', '.join(names)}."
        yield ""


def main(argv: list[str] | None = None) -> int:
    """Run all claimed cases, print or write the table; 0 if all passed that are not excluded."""
    parser = argparse.ArgumentParser("python -m fastlstm.conformance.onnx", description=__doc__)
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the table to FILE instead of stdout")
    options = parser.parse_args(argv)
    found = cases()
    failed = outcome([case for case in found if case.is_claimed and not case.reason])
    for name, why in failed.items():
        sys.stderr.write(f"{name}: {why}\n")
    page = table(found, failed)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(page)
    else:
        sys.stdout.write(page)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
