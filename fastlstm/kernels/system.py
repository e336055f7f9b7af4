"""The functions outside of a kernel that machine code may call; nothing else, and nothing that takes memory."""

from __future__ import annotations

__all__ = ["C_FUNCTIONS", "KNOWN", "LINUX_FUNCTIONS", "SYSTEM_FUNCTIONS"]

C_FUNCTIONS = ("memcpy", "memmove", "memset", "sqrt", "log")  # LLVM makes calls of the first three out of loops
SYSTEM_FUNCTIONS = (
    "pthread_mutex_lock",
    "pthread_mutex_unlock",
    "pthread_cond_broadcast",
    "pthread_cond_wait",
)
LINUX_FUNCTIONS = ("sched_getcpu", "sched_getaffinity", "sched_setaffinity")
KNOWN = frozenset((*C_FUNCTIONS, *SYSTEM_FUNCTIONS, *LINUX_FUNCTIONS))
