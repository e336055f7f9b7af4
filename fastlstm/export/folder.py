"""Exporting a model: all files are written to a temporary folder, which is renamed when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastlstm.errors import DependencyError, InputError, UnsupportedError
from fastlstm.export import manifest, web
from fastlstm.export.archive import archive
from fastlstm.export.golden import Golden, test_program
from fastlstm.export.header import header
from fastlstm.export.interface import Interface
from fastlstm.export.library import LIBRARY_LEVELS, NARROW_LEVELS, dispatcher, level_prefix
from fastlstm.export.linking import link
from fastlstm.export.model import LARGEST_STATE, Exported
from fastlstm.export.module import Module, compiled
from fastlstm.export.names import checked_name, name_of
from fastlstm.export.objects import renamed
from fastlstm.export.sizes import size_macros, sizes_of
from fastlstm.export.texts import cmake, readme
from fastlstm.graph.quantise import precisions
from fastlstm.model import Model
from fastlstm.target import LEVELS, TARGETS, Target
from fastlstm.target.machine import cores
from fastlstm.verification.fixing import fixed

__all__ = ["export", "target_named"]


def export(
    model: Model,
    folder: str | os.PathLike[str],
    targets: Sequence[str | Target] = ("x86-64-v3",),
    name: str | None = None,
    *,
    batch: int = 1,
    precision: str | Mapping[str, str] | None = None,
    sizes: Mapping[str, int] | None = None,
    inputs: Mapping[str, Any] | None = None,
    state: Mapping[str, str] | None = None,
    whole: bool = False,
    weights: str = "inside",
) -> dict[str, Any]:
    """Write a model as object files, a C header and the files around them; see `fastlstm.export`."""
    chosen = _targets(targets)
    place = _free(Path(folder))
    own = checked_name(name) if name is not None else name_of(model.graph.name or place.name)
    if weights not in ("inside", "apart"):
        raise InputError(f"weights should be 'inside' or 'apart'; got '{weights}'.")
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise InputError(f"batch should be a positive integer; got {batch!r}.")
    if precision is not None or sizes or inputs:
        model = Model(fixed(model.graph, sizes or {}, inputs or {}), 1, precision or "float32")
    exported = Exported(model, batch, whole or (bool(sizes) and not state), dict(state or {}))
    files = _files(exported, own, chosen, weights == "apart")
    content = files.pop("")
    _write(place, files)
    return dict(content)


def target_named(name: str) -> Target:
    """Return the target of a name; InputError if there is none."""
    if name not in TARGETS:
        raise InputError(f"There is no target '{name}'; expected one of {', '.join(TARGETS)}, or --triple.")
    return TARGETS[name]


def _targets(targets: Sequence[str | Target]) -> list[Target]:
    if isinstance(targets, (str, Target)) or not targets:
        raise InputError(f"targets should be a sequence of targets' names, at least one; got {targets!r}.")
    found = [target if isinstance(target, Target) else target_named(target) for target in targets]
    names = [target.name for target in found]
    if len(set(names)) < len(names):
        raise InputError(f"Each target should be named once; got {', '.join(names)}.")
    return found


def _files(exported: Exported, name: str, targets: Sequence[Target], apart: bool) -> dict[str, Any]:
    """Return the folder's files, with the manifest under the name ""."""
    sources = {target.name: exported.source(target) for target in targets}
    interface = exported.interface(name, next(iter(sources.values())), apart)
    golden = exported.golden(interface, next(iter(sources.values())))
    narrow = precisions(exported.model.graph)
    levels = [] if apart else _levels(targets, bool(narrow))
    others = [target for target in targets if target not in levels]
    jobs = [(sources[t.name], t, name) for t in others]
    jobs += [(sources.get(t.name) or exported.source(t), t, level_prefix(interface, t.name)) for t in levels]
    with ThreadPoolExecutor(cores()) as pool:  # LLVM runs in separate processes, one per core at a time
        compiling = pool.map(lambda job: compiled(job[0], interface, *job[1:]), jobs)
        chooser = dispatcher(interface, [t.name for t in levels]) if levels else b""
        made = list(compiling)
    own = {module.target.name: _alone(module, name) for module in made}
    modules = {target.name: own[target.name] for target in targets}
    files: dict[str, Any] = {}
    entries = {}
    for target, module in modules.items():
        files[f"{name}-{target}.o"] = module.code
        entries[target] = manifest.target_entry(module, f"{name}-{target}.o")
        if apart:
            files[f"{name}-{target}.bin"] = module.weights
    library = _library(interface, chooser, made[len(others) :])
    size, align = sizes_of(made)
    if size > LARGEST_STATE:
        raise UnsupportedError(f"The state would take {size} bytes, more than {LARGEST_STATE}: give smaller sizes.")
    program = sources[targets[0].name].step.program
    macs = exported.batch * sum(step.macs for step in program.instructions)
    said = narrow if len(set(narrow.values())) > 1 else next(iter(narrow.values()), "float32")
    content = manifest.manifest(interface, entries, golden, (size, align), macs, said, exported.model.graph.notes)
    if library:
        files[f"lib{name}.a"] = library
        content["library"] = {
            "file": f"lib{name}.a", "targets": [t.name for t in levels], "sha256": manifest.sha256(library),
        }  # fmt: skip
    files |= _web(content, modules, golden)
    files[f"{name}.h"] = header(interface, size_macros(name, made)).encode()
    files[f"{name}_test.c"] = test_program(interface, golden).encode()
    files["CMakeLists.txt"] = cmake(interface, content).encode()
    files["README.md"] = readme(interface, content).encode()
    content["files"] = {file: manifest.sha256(files[file]) for file in sorted(files)}
    files[f"{name}.json"] = manifest.text(content)
    files[""] = content
    return files


def _levels(targets: Sequence[Target], narrow: bool) -> list[Target]:
    """Return the levels that go into a library, of `narrow` weights or not: all if one was asked for, else none."""
    levels = NARROW_LEVELS if narrow else LIBRARY_LEVELS
    return [LEVELS[name] for name in levels] if any(target.name in levels for target in targets) else []


def _alone(module: Module, name: str) -> Module:
    """Return a module with its functions renamed from the level's prefix to the model's."""
    if module.prefix == name:
        return module
    names = {old: name + old.removeprefix(module.prefix) for old in module.exported}
    return replace(module, code=renamed(module.code, names), exported=tuple(names.values()))


def _library(interface: Interface, chooser: bytes, modules: Sequence[Module]) -> bytes:
    """Return the library made of the levels' modules; nothing if there are none."""
    if not modules:
        return b""
    members = {f"{interface.name}.o": chooser}
    return archive({**members, **{f"{interface.name}-{m.target.name}.o": m.code for m in modules}})


def _web(content: dict[str, Any], modules: Mapping[str, Module], golden: Golden) -> dict[str, bytes]:
    """Return the linked WebAssembly and its JavaScript; without a linker the manifest says so."""
    try:
        linked = {
            target: link({f"{target}.o": module.code}, module.exported)
            for target, module in modules.items()
            if content["targets"][target]["format"] == "wasm"
        }
    except DependencyError as error:
        content["notes"].append(str(error))
        return {}
    return web.files(content, linked, golden) if linked else {}


# ---------------------------------------------------------------- files


def _free(folder: Path) -> Path:
    """Return the folder; InputError if it exists already or cannot be made."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InputError(f"'{folder}' exists already: name a new folder, or remove it first.")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise InputError(f"'{parent}' is no folder: make it first.")
    return folder


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files or none: into a temporary folder, which is renamed when it is complete."""
    aside = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}-"))
    try:
        for name, content in files.items():
            (aside / name).write_bytes(content)
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
