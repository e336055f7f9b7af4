"""Names of exported models, which have to be valid in C and as file names."""

from __future__ import annotations

import re

from fastlstm.errors import InputError

__all__ = ["checked_name", "name_of"]

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")

_HEADERS = (
    "assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdatomic"
    " stdbit stdbool stdckdint stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar wchar wctype"
    " unistd fcntl pthread dirent poll sched semaphore termios dlfcn memory strings malloc alloca features"
)
HEADERS = frozenset(_HEADERS.split())
"""Headers of C and POSIX, which the model's own would shadow."""

PREFIXES = frozenset(["pthread", "pthread_attr", "pthread_mutex", "pthread_cond", "sem", "curl", "png"])
"""Prefixes of functions in widely used libraries."""


def checked_name(name: str) -> str:
    """Return the name if C functions and files may begin with it.

    Raises
    ------
    InputError
        If they may not.
    """
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or "__" in name:
        raise InputError(
            f"The name '{name}' cannot begin C's names: expected a letter, then letters, digits and single "
            "underscores, 63 at most. Choose another with --name (name=)."
        )
    if name.lower() in HEADERS or name in PREFIXES:
        raise InputError(
            f"The name '{name}' clashes with a header or functions of C's libraries: choose another, --name (name=)."
        )
    return name


def name_of(stem: str) -> str:
    """Return a name made from a file's: characters that C does not allow become underscores."""
    words = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[:48]
    name = words if re.match(r"[A-Za-z]", words) else f"model_{words}".strip("_")
    return f"{name}_model" if name.lower() in HEADERS or name in PREFIXES else name
