"""Kernels that a model runs many times: one function for all of its instructions, which pass what differs.

A kernel is written out anew for each instruction, as its sizes and places are constants then. A network of many
convolutions would hold the same code dozens of times, and LLVM take as long; its calls are long, and lose little. So
does a layer whose step and block run the same kernel: for AArch64 a GRU(64) took LLVM 3.7 s of processor time and now
2.2, an LSTM(64) had 24 KB of code and now 13, and neither was slower. What all calls give alike stays a constant.
"""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.export.specialise import Answer

__all__ = ["MOST_TEXT", "SharedKernel"]

MOST_TEXT = 1 << 18
"""Characters of LLVM's assembly for all copies of a kernel: one of a large layer's, two of a small one's.

Half of it would have LSTM(1→20) share its kernel, whose step was 3 % slower then.
"""

Ask = Callable[[str, int | None, str], Answer]


class SharedKernel:
    """The parameters of a shared function: what its kernel asked for, beside what every function is given.

    Attributes
    ----------
    name : str
    parameters : list of str
        With their types; complete when the function has been written.
    """

    def __init__(self, name: str, word: str, common: tuple[str, ...], complaint: Callable[[], Answer]) -> None:
        self.name, self.parameters = name, list(common)
        self._word, self._complaint = word, complaint
        self._asked: dict[tuple[str, int | None, str], str] = {}

    def answer(self, primitive: str, number: int | None, operand: str) -> Answer:
        """Return what a call of a primitive gives in the function: a parameter."""
        if primitive == "complain":
            return self._complaint()
        key = (primitive, number, operand if number is None else "")
        if key not in self._asked:
            self._asked[key] = f"%fl.p{len(self._asked)}"
            self.parameters.append(f"{self._word} {self._asked[key]}")
        return self._asked[key], ()

    def passed(self, ask: Ask, number_of: Callable[[int], int]) -> list[Answer]:
        """Return the values of the parameters for an instruction.

        Parameters
        ----------
        ask : callable
            What the instruction's own function would be told.
        number_of : callable
            The integer that one of the instruction's words is: a slot.
        """
        words = {name: n for (primitive, n, _), name in self._asked.items() if primitive == "arg" and n is not None}
        return [
            ask(primitive, number_of(words[operand]) if number is None and operand in words else number, operand)
            for primitive, number, operand in self._asked
        ]
