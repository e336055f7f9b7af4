"""Names of exported models: what C, and the folder's files, let them be."""

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
"""Headers of C and POSIX: the model's own would be read in their place."""

PREFIXES = frozenset(["pthread", "pthread_attr", "pthread_mutex", "pthread_cond", "sem", "curl", "png"])
"""What functions of widely used libraries begin with."""


def checked_name(name: str) -> str:
    """Return a name that C's functions and the files may begin with.

    Raises
    ------
    InputError
        If it may not.
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
    """Return a name made of a file's: what C does not know becomes an underscore."""
    words = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[:48]
    name = words if re.match(r"[A-Za-z]", words) else f"model_{words}".strip("_")
    return f"{name}_model" if name.lower() in HEADERS or name in PREFIXES else name
