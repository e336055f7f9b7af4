"""What kernels leave to their target, in LLVM assembly.

Kernels are templates that are the same for every processor and call the functions defined here. An exported model has
other definitions of those that read the frame, with constants in place of memory.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastlstm.program import layout
from fastlstm.target import Target

__all__ = ["flushes_denormals", "frame_primitives", "target_primitives"]

INLINE = "alwaysinline nounwind"


def target_primitives(target: Target, names: Iterable[str]) -> str:
    """Return the definitions of the primitives among `names` that depend only on the processor."""
    parts = [_multiply_add(int(name.rsplit("_", 1)[1]), target.fma) for name in names if "_multiply_add_" in name]
    architecture = target.architecture
    return "\n".join([*parts, _pause(architecture), _float_mode(architecture), _clock(architecture)])


def _multiply_add(lanes: int, fused: bool) -> str:
    kind, name = f"<{lanes} x float>", f"@llvm.fma.v{lanes}f32"
    head = f"define {kind} @fl_multiply_add_{lanes}({kind} %a, {kind} %b, {kind} %c) {INLINE} {{\n"
    if fused:
        return (
            f"declare {kind} {name}({kind}, {kind}, {kind})\n{head}"
            f"  %r = call {kind} {name}({kind} %a, {kind} %b, {kind} %c)\n  ret {kind} %r\n}}"
        )
    # Rounded twice: LLVM would call a slow library function for a fused multiply-add.
    return f"{head}  %p = fmul {kind} %a, %b\n  %r = fadd {kind} %p, %c\n  ret {kind} %r\n}}"


def _pause(architecture: str) -> str:
    hint = {
        "x86_64": ("declare void @llvm.x86.sse2.pause()\n", "  call void @llvm.x86.sse2.pause()\n"),
        "aarch64": ("declare void @llvm.aarch64.hint(i32)\n", "  call void @llvm.aarch64.hint(i32 1)\n"),
    }
    declared, call = hint.get(architecture, ("", ""))
    return f"{declared}define i64 @fl_pause() {INLINE} {{\n{call}  ret i64 0\n}}"


def _clock(architecture: str) -> str:
    read = {
        "x86_64": ("declare i64 @llvm.readcyclecounter()\n", "  %r = call i64 @llvm.readcyclecounter()\n"),
        "aarch64": (
            "declare i64 @llvm.read_volatile_register.i64(metadata)\n",
            '  %r = call i64 @llvm.read_volatile_register.i64(metadata !{!"cntvct_el0"})\n',
        ),
    }
    declared, call = read.get("aarch64" if architecture == "arm64" else architecture, ("", "  %r = add i64 0, 0\n"))
    return f"{declared}define i64 @fl_clock() {INLINE} {{\n{call}  ret i64 %r\n}}"


def _float_mode(architecture: str) -> str:
    declared, get, put, flush = _FLOAT_MODES.get(architecture, _NO_FLOAT_MODE)
    return (
        f"{declared}define i64 @fl_get_float_mode() {INLINE} {{\n{get}}}\n"
        f"define i64 @fl_set_float_mode(i64 %mode) {INLINE} {{\n{put}  ret i64 %mode\n}}\n"
        f"define i64 @fl_with_flush_to_zero(i64 %mode) {INLINE} {{\n  %r = or i64 %mode, {flush}\n  ret i64 %r\n}}\n"
        + (_FLUSHES_X86 if architecture == "x86_64" else _FLUSHES)
    )


def flushes_denormals(architecture: str) -> bool:
    """Whether kernels can flush denormals to zero on the target."""
    return architecture in _FLOAT_MODES


_FLUSHES = f"""define i1 @fl_flushes() {INLINE} {{
  %mode = call i64 @fl_get_float_mode()
  %flush = call i64 @fl_with_flush_to_zero(i64 %mode)
  %r = icmp eq i64 %mode, %flush
  ret i1 %r
}}"""
"""Whether denormals are flushed to zero already."""

# Reading MXCSR takes 15 cycles and waits for all earlier sums (Zen 3), where an LSTM of 20 units takes 400. If a
# denormal equals zero, denormals are read as zero; if half of the smallest normal number has no bits, they are written
# as zero.
_FLUSHES_X86 = f"""@fl_denormal = internal constant float 0x3800000000000000
@fl_normal = internal constant float 0x3810000000000000
define i1 @fl_flushes() {INLINE} {{
  %denormal = load volatile float, ptr @fl_denormal
  %reads = fcmp oeq float %denormal, 0.0
  br i1 %reads, label %more, label %no
more:
  %normal = load volatile float, ptr @fl_normal
  %half = fmul float %normal, 0.5
  %bits = bitcast float %half to i32
  %r = icmp eq i32 %bits, 0
  ret i1 %r
no:
  ret i1 false
}}"""

_NO_FLOAT_MODE = ("", "  ret i64 0\n", "", 0)
_FLOAT_MODES = {
    "x86_64": (  # MXCSR: FTZ is bit 15, DAZ bit 6
        "declare void @llvm.x86.sse.stmxcsr(ptr)\ndeclare void @llvm.x86.sse.ldmxcsr(ptr)\n",
        "  %at = alloca i32\n  call void @llvm.x86.sse.stmxcsr(ptr %at)\n"
        "  %narrow = load i32, ptr %at\n  %r = zext i32 %narrow to i64\n  ret i64 %r\n",
        "  %at = alloca i32\n  %narrow = trunc i64 %mode to i32\n  store i32 %narrow, ptr %at\n"
        "  call void @llvm.x86.sse.ldmxcsr(ptr %at)\n",
        0x8040,
    ),
    "aarch64": (  # FPCR: FZ is bit 24
        "declare i64 @llvm.aarch64.get.fpcr()\ndeclare void @llvm.aarch64.set.fpcr(i64)\n",
        "  %r = call i64 @llvm.aarch64.get.fpcr()\n  ret i64 %r\n",
        "  call void @llvm.aarch64.set.fpcr(i64 %mode)\n",
        1 << 24,
    ),
}
_FLOAT_MODES["arm64"] = _FLOAT_MODES["aarch64"]  # as Apple calls it
_FPSCR = (  # FZ is bit 24
    "declare i32 @llvm.arm.get.fpscr()\ndeclare void @llvm.arm.set.fpscr(i32)\n",
    "  %narrow = call i32 @llvm.arm.get.fpscr()\n  %r = zext i32 %narrow to i64\n  ret i64 %r\n",
    "  %narrow = trunc i64 %mode to i32\n  call void @llvm.arm.set.fpscr(i32 %narrow)\n",
    1 << 24,
)
# ARM with a floating-point unit; a Cortex-M0 or M3 has none.
_FLOAT_MODES |= dict.fromkeys(("armv7", "thumbv7em", "thumbv8m.main", "thumbv8.1m.main"), _FPSCR)


def _load(name: str, base: str, byte: int | str) -> str:
    """Return the lines that load the word at `base` + `byte` as ``%name``."""
    return (
        f"  %{name}.at = add i64 {base}, {byte}\n  %{name}.ptr = inttoptr i64 %{name}.at to ptr\n"
        f"  %{name} = load i64, ptr %{name}.ptr, align 8\n"
    )


def _two(name: str, body: str, returns: str = "%r") -> str:
    return f"define i64 @{name}(i64 %a, i64 %i) {INLINE} {{\n{body}  ret i64 {returns}\n}}"


def frame_primitives() -> str:
    """Return the definitions that read a frame, its slots and an instruction's arguments from memory."""
    word = "  %offset = mul i64 %i, 8\n" + _load("r", "%a", "%offset")
    slot = _load("slots", "%a", 8 * layout.SLOTS) + (
        f"  %offset = mul i64 %i, {8 * layout.SLOT_WORDS}\n  %slot = add i64 %slots, %offset\n"
    )
    origin = (
        slot
        + _load("base", "%slot", 8 * layout.SLOT_BASE)
        + _load("one", "%slot", 8 * layout.SLOT_BLOCK)
        + _load("start", "%a", 8 * layout.START)
        + _load("time", "%slot", 8 * layout.SLOT_TIME)
        + "  %whole = icmp eq i64 %one, 0\n  %behind = mul i64 %start, %time\n"
        "  %from = select i1 %whole, i64 %behind, i64 0\n  %r = add i64 %base, %from\n"
    )
    active = f"""define i64 @fl_active_rows(i64 %a, i64 %i) {INLINE} {{
{_load("table", "%a", 8 * layout.ACTIVE)}  %none = icmp eq i64 %table, 0
  br i1 %none, label %all, label %ragged
all:
{_load("rows", "%a", 8 * layout.ROWS)}  ret i64 %rows
ragged:
{_load("total", "%a", 8 * layout.TOTAL)}  %inside = icmp ult i64 %i, %total
  br i1 %inside, label %within, label %outside
outside:
  ret i64 0
within:
  %offset = mul i64 %i, 8
{_load("r", "%table", "%offset")}  ret i64 %r
}}"""
    complain = f"""define i64 @fl_complain(i64 %a) {INLINE} {{
  %at = add i64 %a, {8 * layout.STATUS}
  %ptr = inttoptr i64 %at to ptr
  store i64 1, ptr %ptr, align 8
  ret i64 0
}}"""
    return "\n".join(
        (
            _two("fl_word", word),
            _two("fl_arg", word),
            _two("fl_origin", origin),
            _two("fl_time_stride", slot + _load("r", "%slot", 8 * layout.SLOT_TIME)),
            _two("fl_row_stride", slot + _load("r", "%slot", 8 * layout.SLOT_ROW)),
            active,
            complain,
        )
    )
