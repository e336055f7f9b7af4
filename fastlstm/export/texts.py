"""The folder's README and its CMakeLists.txt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastlstm.export.header import declarations
from fastlstm.export.interface import Interface

__all__ = ["cmake", "readme"]


def readme(interface: Interface, content: Mapping[str, Any]) -> str:
    """Return the README.md of a folder: one page."""
    n = interface.name
    functions = "\n".join(declaration + ";" for _, declaration in declarations(interface))
    rows = [
        f"| {name} | `{entry['file']}` | {entry['bytes']['code']:,} | {entry['bytes']['weights']:,} | "
        f"{entry['bytes']['state']:,} | {entry['bytes']['stack']:,} | {entry['bits']} | "
        f"{', '.join(entry['undefined']) or 'none'} |"
        for name, entry in content["targets"].items()
    ]
    library = ""
    if "library" in content:
        levels = " and ".join(content["library"]["targets"])
        library = (
            f"\n`{content['library']['file']}` holds code for {levels}; `{n}_init` asks the processor which it "
            "has, and notes it in the state.\nOn a processor that has neither, the functions return 0.\n"
        )
    use = _STREAM_USE if interface.streams else _CALL_USE
    apart = (
        f"\nThe weights are apart: map `{n}-TARGET.bin`, or write it to flash, at a multiple of `{n}_STATE_ALIGN`, and "
        "give its address as `w`.\n"
        if interface.apart
        else ""
    )
    return f"""# {n}

A model as an object file: no library, no heap, no threads, no data that is written to. fastlstm
{content["made_with"]["fastlstm"]} made it.

```c
{functions}
```

{use.replace("@n@", n)}{apart}
| target | file | code | weights | state | stack | bits | lacks |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Sizes are in bytes. "same" bits are those of the engine in Python; where a target has no fused multiply-add, results
are within {content["tolerance"]:g} of it.
{library}
`{n}_test.c` replays {content["golden"]["steps"]} golden samples:

```
cc -O2 {n}_test.c {_linked(content)} -o {n}_test && ./{n}_test
```

`{n}.json` says everything in a form for programs. `{n}_VERSION` is the version of this interface: it goes up when a
program compiled against an older header would notice.
"""


_STREAM_USE = """```c
static @n@_state state;            /* as many as there are streams */
@n@_init(&state);
@n@_step(&state, x, y);            /* once a step */
```

A state belongs to one call at a time; calls with different states may run at once, on any threads. A state is plain
data: `memcpy` saves and restores it on the same target, `@n@_get_state` and `@n@_set_state` carry it between targets
and Python.
"""

_CALL_USE = """```c
static @n@_state state;            /* memory to compute with */
@n@_init(&state);
@n@_call(&state, x, y);
```

A state belongs to one call at a time; calls with different states may run at once, on any threads.
"""


def _linked(content: Mapping[str, Any]) -> str:
    if "library" in content:
        return str(content["library"]["file"])
    return str(next(iter(content["targets"].values()))["file"])


def cmake(interface: Interface, content: Mapping[str, Any]) -> str:
    """Return the CMakeLists.txt of a folder: a library to link, and the test."""
    n = interface.name
    files = " ".join(entry["file"] for entry in content["targets"].values())
    return f"""# target_link_libraries(your_program {n}) links the model; ctest replays its golden samples.
cmake_minimum_required(VERSION 3.13)
project({n} C)

# One of: {" ".join([content["library"]["file"], files] if "library" in content else [files])}
set({n}_OBJECT {_linked(content)} CACHE STRING "the file of the model that is linked")

add_library({n} INTERFACE)
target_include_directories({n} INTERFACE ${{CMAKE_CURRENT_SOURCE_DIR}})
target_link_libraries({n} INTERFACE ${{CMAKE_CURRENT_SOURCE_DIR}}/${{{n}_OBJECT}})

if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  enable_testing()
  add_executable({n}_test {n}_test.c)
  target_link_libraries({n}_test {n})
  add_test(NAME {n} COMMAND {n}_test)
endif()
"""
