"""Kernels that a model runs many times: one function for all of their instructions, which pass what differs.

Usually a kernel is specialised for each instruction, so that its sizes and addresses are constants. A network of many
convolutions would contain the same code dozens of times and take LLVM accordingly long, while its long calls gain
little. The same holds for a layer whose step and block run the same kernel: on AArch64 sharing cut LLVM's time for a
GRU(64) from 3.7 to 2.2 s and the code of an LSTM(64) from 24 to 13 KB, and neither got slower. What all calls have in
common stays a constant.
"""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.export.specialise import Answer

__all__ = ["MOST_TEXT", "SharedKernel"]

MOST_TEXT = 1 << 18
"""Most characters of LLVM assembly for all copies of a kernel: enough for one of a large layer, or two of a small one.

With half as many, LSTM(1→20) would share its kernel, which made its step 3 % slower.
"""

Ask = Callable[[str, int | None, str], Answer]


class SharedKernel:
    """The parameters of a shared function: what its kernel asked for, in addition to every function's parameters.

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
        """Return the parameter that replaces a call of a primitive in the function."""
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
            Answers for the instruction's own function.
        number_of : callable
            Returns one of the instruction's words that is an integer, such as a slot.
        """
        words = {name: n for (primitive, n, _), name in self._asked.items() if primitive == "arg" and n is not None}
        return [
            ask(primitive, number_of(words[operand]) if number is None and operand in words else number, operand)
            for primitive, number, operand in self._asked
        ]
