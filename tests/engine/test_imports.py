"""Which part of fastlstm may import which, in source code: at the top, inside functions and for types alike."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A part is a folder, or a module beside them; "fastlstm" is the package's own __init__. `errors` is open to all.
ALLOWED: Mapping[str, str] = {
    "benchmark": "picture",
    "conversion": "",
    "converters": "graph opening",
    "converters.common": "graph validation",
    "machine": "target",
    "memory": "layout protected",
    "protected": "layout",
    "operators": "graph",
    "pack": "memory",
    "program": "arguments layout memory target",
    "scratch": "layout program",
    "clock": "arguments kernels layout memory program target",
    "profile": "clock picture",
    "quantise": "graph limits",
    "validation": "graph limits operators",
    "converters.audio": "converters.common converters.torch graph",
    "converters.keras": "converters.common graph operators",
    "converters.onnx": "converters.common graph operators quantise validation",
    "converters.torch": "converters.common graph quantise",
    "graph_json": "graph operators validation",
    "kernels": "arguments forking layout limits machine operators simd target",
    "reference": "graph operators",
    "converters.table": "converters.keras converters.onnx converters.torch",
    "fileformat": "graph graph_json memory opening version",
    "native": "busy kernels layout memory target team",
    "passes": "graph operators reference validation",
    "runners": "graph reference",
    "team": "forking kernels layout machine",
    "samples": "graph passes",
    "fixing": "conversion graph samples",
    "segments": "arguments busy graph kernels layout limits memory native operators pack program "
    "protected scratch target team validation",
    "explain": "program segments target",
    "tapes": "arguments busy clock graph layout memory native operators pack passes program protected segments target",
    "comparison": "fileformat graph passes quantise reference runners samples",
    "commands": "benchmark comparison converters fileformat fixing graph model precision quantise runners samples "
    "tables version",
    "tables": "",
    "plan": "explain graph operators passes segments tables tapes target",
    "executor": "clock graph kernels machine native operators plan protected segments tapes target validation",
    "summary": "graph operators passes plan segments tapes",
    "ulp": "layout machine program segments",
    "usual": "graph kernels plan segments target",
    "prebuild": "kernels machine target usual",
    "streaming": (
        "arguments busy conversion executor foreign graph kernels layout machine memory native operators passes plan "
        "program protected segments tables tapes target"
    ),
    "inputs": "conversion foreign graph streaming",
    "model": "clock executor fileformat foreign graph inputs machine native passes plan prepared profile quantise "
    "streaming tables validation comparison",
    "layers": "conversion foreign graph model",
    "known_bits": "graph layers machine model",
    "report": "benchmark known_bits",
    "loading": "converters converters.content fileformat graph machine model opening prepared",
    "__main__": "cli",
    "opening": "",
    "prepared": "graph kernels layout native opening protected segments target version",
    "export": "conversion executor fixing graph graph_json kernels layout machine memory model passes program samples "
    "scratch segments streaming tapes target version",
    "scoring": "graph graph_json loading machine model samples version",
    "ray": "model scoring",
    "onnx_backend": "converters.onnx model",
    "precision": "benchmark graph model passes quantise",
    "fastlstm": "converters converters.keras converters.onnx converters.torch export fileformat "
    "commands graph layers loading model scoring streaming target version",
    "onnx_conformance": "converters.onnx onnx_backend operators",
    "cli": "benchmark commands comparison converters explain export fastlstm fileformat fixing graph kernels layers "
    "machine model passes plan precision quantise report runners samples segments streaming summary tables target "
    "usual",
}


def modules() -> dict[str, Path]:
    """Return the source of every module by its full name."""
    found = {}
    for path in [*ROOT.glob("fastlstm/**/*.py"), *ROOT.glob("converters/**/*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "fastlstm" else ("fastlstm", *parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of fastlstm that a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known or node.module in known:
                    yield name if name in known else str(node.module)


def part_of(module: str) -> str:
    parts = module.split(".")[1:]
    if parts[:1] == ["converters"]:
        return ".".join(parts[:2])
    return parts[0] if parts else "fastlstm"


SOURCES = modules()
IMPORTS = {name: set(imported(path, SOURCES)) - {name} for name, path in SOURCES.items()}


def circles() -> set[frozenset[str]]:
    """Return the sets of modules each of which leads to all the others."""
    reached = {}
    for name in IMPORTS:
        seen, waiting = set(), [name]
        while waiting:
            new = IMPORTS[waiting.pop()] - seen
            seen |= new
            waiting.extend(new)
        reached[name] = seen
    return {frozenset(m for m in seen if name in reached[m]) for name, seen in reached.items() if name in seen}


def test_parts_import_only_what_lies_below_them() -> None:
    edges = {(part_of(a), part_of(b)): f"{a} imports {b}" for a in sorted(IMPORTS) for b in sorted(IMPORTS[a])}
    wrong = [
        words
        for edge, words in edges.items()
        if edge[0] != edge[1] and edge[1] not in (*ALLOWED.get(edge[0], "").split(), "errors")
    ]
    assert not wrong


def test_no_module_leads_back_to_itself() -> None:
    assert not [sorted(circle) for circle in circles()]


def test_the_order_has_no_circle_itself() -> None:
    below = {part: set(row.split()) for part, row in ALLOWED.items()}
    while below:
        free = {part for part, row in below.items() if not row & below.keys()}
        assert free, f"{sorted(below)} allow each other"
        below = {part: row for part, row in below.items() if part not in free}


def test_every_folder_of_modules_is_in_the_wheel() -> None:
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert listed
    folders = {name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in SOURCES.items()}
    assert set(re.findall(r'"([^"]+)"', listed[1])) == folders
