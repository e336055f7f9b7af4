"""The C header of an exported model."""

from __future__ import annotations

from collections.abc import Sequence

from fastlstm.export.interface import VERSION, Interface, Port

__all__ = ["declarations", "header", "names"]


def header(interface: Interface, sizes: Sequence[str]) -> str:
    """Return ``N.h``, which compiles as C99, C11 and C++17 with ``-pedantic``; `sizes` are those of `size_macros`."""
    n = interface.name
    lines = [
        f"/* {n}: a model that fastlstm exported, interface version {VERSION}; README.md says how to use it. */",
        f"#ifndef {n}_H",
        f"#define {n}_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        f"#define {n}_VERSION {VERSION}",
        *sizes,
        *_macros(interface),
        "",
        "#if defined(__cplusplus)",
        f"#define {n}_ALIGNED alignas({n}_STATE_ALIGN)",
        "#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L",
        f"#define {n}_ALIGNED _Alignas({n}_STATE_ALIGN)",
        "#elif defined(_MSC_VER)",
        f"#define {n}_ALIGNED __declspec(align({n}_STATE_ALIGN))",
        "#else",
        f"#define {n}_ALIGNED __attribute__((aligned({n}_STATE_ALIGN)))",
        "#endif",
        "",
        "/* All that a model remembers and computes with. It holds no pointers: copy it with memcpy, keep as many as",
        "   you like. One call at a time uses a state; calls with different states may run at once. */",
        f"typedef struct {{ {n}_ALIGNED unsigned char bytes[{n}_STATE_BYTES]; }} {n}_state;",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
    ]
    for comment, declaration in declarations(interface):
        lines += [f"/* {comment} */", f"{declaration};", ""]
    return "\n".join([*lines, "#ifdef __cplusplus", "}", "#endif", "", "#endif", ""])


def _macros(interface: Interface) -> list[str]:
    n = interface.name
    found: list[tuple[str, int]] = []
    for letter, ports in (("X", interface.inputs), ("Y", interface.outputs)):
        found.append((f"{letter}_SIZE", sum(port.elements for port in ports)))
        if len(ports) > 1:
            found += [(f"{port.parameter.upper()}_SIZE", port.elements) for port in ports]
    if interface.streams:
        several = len(interface.outputs) > 1
        found += [("HOP", interface.hop), ("DELAY", interface.delay), ("TAIL", interface.tail)]
        found += [(f"{p.parameter.upper() if several else 'Y'}_FRAMES", p.frames) for p in interface.outputs]
        found.append(("STATE_SIZE", interface.state_size))
    return [f"#define {n}_{name} {value}" for name, value in found]


def declarations(interface: Interface) -> list[tuple[str, str]]:
    """Return what each function does, and its declaration."""
    n = interface.name
    state = [f"{n}_state *s", *(["const void *w"] if interface.apart else [])]
    ins = [_parameter(port, True) for port in interface.inputs]
    outs = [_parameter(port, False) for port in interface.outputs]
    ports = ", ".join([*state, *ins, *outs])
    first = "The model's own initial state."
    if interface.apart:
        first += f" w: the weights, {n}-TARGET.bin, at a multiple of {n}_STATE_ALIGN."
    failed = "; 0 if an id is not in its table: begin anew then" if _has_ids(interface) else ""
    found = [(first, f"void {n}_init({', '.join(state)})")]
    about = "; ".join(_about(port) for port in interface.ports)
    if not interface.streams:
        found.append((f"One call of the model: {about}.", f"void {n}_call({ports})"))
    else:
        found += [
            (
                f"{_frames(interface.hop)} in, what comes of it out: {about}.\n   Returns the frames written to y"
                f"{_late(interface)}{failed}.",
                f"size_t {n}_step({ports})",
            ),
            (
                "The same n times: what the steps take and give lies one behind the other. Inputs and outputs must not"
                " overlap.\n   The results are those of n steps, bit for bit, and come sooner.",
                f"size_t {n}_run({ports}, size_t n)",
            ),
            (
                f"What look-ahead still holds; returns the frames written to y: {n}_TAIL at most. Begin anew then.",
                f"size_t {n}_finish({', '.join([*state, *outs])})",
            ),
            (
                f"The {n}_STATE_SIZE numbers of the state, as stream.state has them in Python.",
                f"void {n}_get_state(const {n}_state *s, float *flat)",
            ),
            ("Go on from these.", f"void {n}_set_state({n}_state *s, const float *flat)"),
        ]
    return [
        *found,
        (
            "1: the same bits as in Python. 0: the target has no fused multiply-add; results are as close as"
            f"\n   {n}.json says.",
            f"int {n}_same_bits(void)",
        ),
        ("SHA-256 of the model.", f"const char *{n}_model_hash(void)"),
    ]


def _parameter(port: Port, is_input: bool) -> str:
    return f"{'const ' if is_input else ''}{port.c_type} *{port.parameter}"


def _about(port: Port) -> str:
    shape = "".join(f"[{size}]" for size in port.shape) or "a number"
    name = "".join(c if c.isprintable() and c not in "*/\\" else "_" for c in port.name)
    return f"{port.parameter} is {name}, {shape}" + ("" if port.moves else ", the same for all steps")


def _frames(hop: int) -> str:
    return "One frame" if hop == 1 else f"{hop} frames"


def _late(interface: Interface) -> str:
    if not interface.delay:
        return ""
    return f"; the first {interface.delay} of all are zeros: y is so late"


def _has_ids(interface: Interface) -> bool:
    return any(port.dtype == "int32" for port in interface.inputs)


def names(interface: Interface) -> Sequence[str]:
    """Return the names of the functions."""
    return [declaration.split("(")[0].split(" ")[-1].lstrip("*") for _, declaration in declarations(interface)]
