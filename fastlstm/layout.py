"""The words that Python and compiled code share: all of them are int64, all addresses are absolute.

A *program* is a table of stages and instructions, a *slot* says where a value lies, and a *frame* is what one
worker needs to run a program once. `fastlstm.segments.program` writes them, `fastlstm.kernels` reads them.

    program   n_stages, then a stage: kind, block, n_instructions, then an instruction: kernel address, words of
              arguments, the arguments
"""

from __future__ import annotations

# kinds of stage
BLOCK, REVERSE, ONCE = 0, 1, 2  # blocks of time steps onwards, backwards; a single step without time

# words of a slot
SLOT_BASE = 0  # address of the first element
SLOT_TIME = 1  # bytes from one time step to the next
SLOT_ROW = 2  # bytes from one batch row to the next
SLOT_BLOCK = 3  # 1 if the slot holds one block of time steps, 0 if it holds them all
SLOT_WORDS = 4

# words of a frame
SLOTS = 0  # address of the slots
START = 1  # first time step of the block that is running
STEPS = 2  # time steps in that block
ROWS = 3  # batch rows
WORKER = 4  # this worker's number
WORKERS = 5  # workers that share the program's buffers
SHARES = 6  # address of the team's job, see kernels/shares.py
SCRATCH = 7  # address of this worker's scratch memory
ACTIVE = 8  # 0, or address of the number of rows that are active at each time step, and a 0 after the last
TOTAL = 9  # time steps altogether
STATUS = 10  # written by kernels: 0 or the first complaint about the data
QUANTISED = 11  # address of this worker's memory for quantised rows
FOLLOWING = 12  # address of shares.following
PHASE = 13  # number of the phase this worker is in
RUNS = 14  # how often the program ran in this frame
CUT_BYTES = 15  # panels of more bytes are cut, where several rows pass over them ...
SLICE_BYTES = 16  # ... into slices of so many, which stay in the L1 cache
FRAME_WORDS = 18

# words that the entry from Python reads (`fastlstm.native` writes them)
ENTRY_NDARRAY = 0  # the type object numpy.ndarray
ENTRY_DTYPE = 1  # the dtype object float32
ENTRY_NONE = 2  # the object None
ENTRY_INCREF = 3  # addresses of Py_IncRef and PyArray_NewLikeArray
ENTRY_NEW_LIKE = 4
ENTRY_PROTOTYPE = 5  # the array object that a new output is like
ENTRY_SAVE = 6  # addresses of PyEval_SaveThread and PyEval_RestoreThread, 0 to keep the lock
ENTRY_RESTORE = 7
ENTRY_RUN = 8  # address of the function to call (the driver, or a team's), and its two arguments
ENTRY_FRAME = 31
ENTRY_STEPS = 11
ENTRY_BUSY = 12  # the flag (`fastlstm.busy.Busy`) that says whether the program is in use
ENTRY_X = 13  # address of the slot, bytes between time steps and between rows, rank, up to 4 sizes
ENTRY_Y = 21
ENTRY_CLEARS = 29  # states to clear; address and floats of each from ENTRY_CLEAR on
ENTRY_CLEAR = 32

# bytes from the start of a Python object, and of an array object, to its fields (64-bit CPython)
OBJECT_TYPE = 8
OBJECT_SLOT = 16  # the first slot of an object whose class names its slots: 0 if it is empty
ARRAY_DATA = 16
ARRAY_RANK = 24
ARRAY_DIMS = 32
ARRAY_DTYPE = 56
ARRAY_FLAGS = 64

# words of a team's job; those that different threads wait for lie on cache lines of their own
JOB_NUMBER = 0  # goes up with every job
JOB_ALIVE = 8  # 1 while there are workers
JOB_BUSY = 9  # 1 while a job runs
JOB_PROGRAM = 10
JOB_DRIVE = 11
JOB_FRAMES = 12  # address of the workers' frames' addresses
JOB_PHASE = 13  # number of the last phase of all jobs so far
JOB_LIGHT = 14  # light jobs that found workers asleep
JOB_SLEEPERS = 16  # workers that sleep until the next job
JOB_WAITERS = 17  # threads that sleep until a share is done, or a worker has left
JOB_MUTEX = 24  # the system's: 64 bytes at most, and so the condition variables
JOB_CONDITION = 32
JOB_CONDITION_2 = 40
JOB_SYSTEM = 48  # addresses of the functions `SYSTEM_FUNCTIONS`, 0 where the system has none of that name
JOB_SHARES = 56  # `SHARE_WORDS` a worker

# functions of the system's that a team's kernels call, in the order of their addresses in the job
SYSTEM_FUNCTIONS = (
    "pthread_mutex_lock",
    "pthread_mutex_unlock",
    "pthread_cond_broadcast",
    "pthread_cond_wait",
    "sched_getcpu",
    "sched_getaffinity",
    "sched_setaffinity",
)

# words of a worker's share of every phase, and of the worker
SHARE_CLAIMED = 0  # the last phase in which somebody claimed the share
SHARE_DONE = 1  # the last phase in which it was done
SHARE_PRESENT = 2  # 1 if its own worker was there to claim it
WORKER_GATE = 8  # the number of the job that the worker may enter; minus that when it is inside
WORKER_LEFT = 9  # the number of the last job that the worker has left
WORKER_THREAD = 10  # the system's number of its thread
WORKER_ASLEEP = 11  # 1 while it sleeps until the next job
WORKER_KEPT_OFF = 12  # the processor, counted from 1, that it was forbidden as it slept, or 0
WORKER_MASK = 16  # room for a set of 1024 processors
SHARE_WORDS = 32

# words of a crew: a program and the frames with which a team runs it
CREW_JOB = 0
CREW_PROGRAM = 1
CREW_DRIVE = 2
CREW_ALONE = 3  # the frame with which one thread runs it alone
CREW_WORKERS = 4
CREW_FRAMES = 5

AXES = 5  # loops of a kernel over arrays of any shape, see kernels/arrays.py
TOGETHER = 48  # rows of a product outside segments: enough to use each weight often, few enough for sums to stay in L1

# element types and operations of kernels/whole.py
KINDS = {"bool": 0, "int8": 1, "uint8": 2, "int32": 3, "int64": 4, "float32": 5}
OPERATIONS = {
    "Add": 0, "Sub": 1, "Mul": 2, "And": 3, "Or": 4, "Xor": 5, "Not": 6, "Cast": 7, "Min": 8, "Max": 9,
    "Less": 10, "LessOrEqual": 11, "Greater": 12, "GreaterOrEqual": 13, "Equal": 14,
}  # fmt: skip  # those from "Less" on take float32 too
