"""Which part of fastlstm may import which, in source code: at the top, inside functions and for types alike."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A part is a folder, or a module beside them; "fastlstm" is the package's own __init__. All import `errors`, `typing`.
ALLOWED: Mapping[str, str] = {
    "target": "",
    "graph": "target",
    "program": "target",
    "operators": "graph target",
    "kernels": "forking operators program target",
    "passes": "graph operators",
    "files": "graph operators program version",
    "converters": "files graph",
    "converters.common": "graph operators",
    "converters.audio": "converters.common converters.torch graph",
    "converters.keras": "converters.common graph operators",
    "converters.onnx": "converters.common graph operators",
    "converters.torch": "converters.common graph",
    "converters.table": "converters.keras converters.onnx converters.torch",
    "runtime": "files forking graph kernels program target version",
    "reporting": "runtime",
    "lowering": "graph kernels operators passes program reporting runtime target",
    "executor": "graph kernels lowering operators program runtime target",
    "streaming": "executor graph kernels lowering operators passes program reporting runtime target",
    "verification": "files graph operators passes runtime",
    "inputs": "graph runtime streaming",
    "model": "executor files graph inputs lowering operators passes reporting runtime streaming target verification",
    "layers": "graph model runtime",
    "loading": "converters files graph model runtime target",
    "export": "executor files graph kernels lowering model passes program runtime streaming target verification "
    "version",
    "scoring": "files graph loading model target verification version",
    "commands": "converters files graph model passes reporting verification version",
    "fastlstm": "commands converters.keras converters.onnx converters.torch export graph layers loading model scoring "
    "streaming target version",
    "ray": "model scoring",
    "prebuild": "kernels lowering target",
    "onnx_backend": "converters.onnx model",
    "conformance": "converters.onnx graph layers model onnx_backend operators program reporting runtime target",
    "cli": "commands conformance export fastlstm files graph kernels layers lowering model passes reporting runtime "
    "streaming target verification",
    "__main__": "cli",
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
    if parts[:1] == ["converters"] and parts[1:] != ["content"]:
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
        if edge[0] != edge[1] and edge[1] not in (*ALLOWED.get(edge[0], "").split(), "errors", "typing")
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
    named = set(re.findall(r'"([^"]+)"', listed[1]))
    assert folders <= named
    assert not [name for name in named - folders if list((ROOT / name.replace(".", "/")).glob("*.py"))]  # files alone
