"""The words that Python and compiled code share: all of them are int64, all addresses are absolute.

A *program* is a table of stages and instructions, a *slot* says where a value lies, and a *frame* is what one
worker needs to run a program once. `fastlstm.runtime.program` writes them, `fastlstm.kernels` reads them.

    program   n_stages, then a stage: kind, block, n_instructions, then an instruction: kernel address, shares that
              it is worth, words of arguments, the arguments
"""

from __future__ import annotations

LINE = 64  # bytes of a cache line, on which buffers and rows begin

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
JOB = 6  # address of the team's job, see kernels/team.py
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
ROOM = 17  # time steps that there is memory for
SHARES = 18  # into how many shares a phase of work is divided, see kernels/shares.py
EACH = 19  # how many of them are each worker's
OWN_DONE = 20  # shares of its own that the worker has done and not announced
FRAME_WORDS = 21

# words that the entry from Python reads (see `fastlstm.runtime.native`): objects and functions of Python and NumPy
ENTRY_NONE = 0
ENTRY_NDARRAY = 1  # types
ENTRY_DICT = 2
ENTRY_TUPLE = 3
ENTRY_INCREF = 4  # addresses of functions
ENTRY_DECREF = 5
ENTRY_SAVE = 6  # PyEval_SaveThread, PyEval_RestoreThread
ENTRY_RESTORE = 7
ENTRY_EMPTY = 8  # PyArray_Empty
ENTRY_DICT_NEW = 9
ENTRY_DICT_SIZE = 10
ENTRY_DICT_GET = 11
ENTRY_DICT_SET = 12
ENTRY_TUPLE_NEW = 13
ENTRY_TUPLE_SIZE = 14
ENTRY_TUPLE_GET = 15
ENTRY_TUPLE_SET = 16
ENTRY_MOVE = 17  # memmove
# what to run
ENTRY_BUSY = 18  # the flag (`fastlstm.runtime.busy.Busy`) that says whether the program is in use
ENTRY_FRAME = 19
ENTRY_ALONE = 20  # the function that runs it on this thread, and its first argument; the frame is the second
ENTRY_PROGRAM = 21
ENTRY_LEAD = 22  # the function that runs it with a team, 0 if there is none, and its first argument
ENTRY_RUN = 23
ENTRY_ALIVE = 24  # address of the word that says whether there are workers
ENTRY_MACS = 25  # multiply-adds of a time step, and how many of a call are worth ...
ENTRY_TEAM = 26  # a team
ENTRY_WAKE = 27  # waking it
ENTRY_HOLD = 28  # giving the interpreter lock away
# what comes and goes
ENTRY_STEPS = 29  # time steps if they are always as many, else 0
ENTRY_ROOM = 30  # the most that there is memory for, besides the frame's `ROOM`
ENTRY_ROWS = 31  # batch rows
ENTRY_INPUTS = 32  # how many, and from ENTRY_FIRST on a record of `VALUE_WORDS` each; the outputs behind them
ENTRY_OUTPUTS = 33
ENTRY_BARE = 34  # 1 if a single output is never wrapped in a dict, and several always are
ENTRY_IN_PLACE = 35  # 1 if an output may take the place of the input, laid out alike
ENTRY_COPIES = 36  # how many copies of `COPY_WORDS` are made before the run, and how many after; and where they are
ENTRY_COPIES_AFTER = 37
ENTRY_COPY = 38
ENTRY_MASKS = 39  # how many, and where
ENTRY_MASK = 40
ENTRY_WATCHED = 41  # how many words have to be 0 after the run, and where their addresses are
ENTRY_WATCH = 42
ENTRY_LENGTHS = 43  # number of the input that holds lengths, -1 if none does
ENTRY_ACTIVE = 44  # memory for the active rows at each step; for the next row of each length; for the order of rows
ENTRY_NEXT = 45
ENTRY_ORDER = 46
# what the entry notes while a call is under way
ENTRY_TIME = 47  # time steps of this call
ENTRY_SORTED = 48  # 1 if rows run in another order than they came in
ENTRY_ALONE_NOW = 49  # 1 if it does without a team, because other threads run steps of the same pool
ENTRY_FIRST = 50

# words that a pool's entry reads besides those for objects and functions (`fastlstm.streaming.pool_entry` writes them)
POOL_IDS = 49  # the dtype of ids
POOL_CALL = 50  # PyObject_VectorcallDict
POOL_STREAMS = 51  # address of the words below
POOL_LIST = 52  # address of the list of rows
POOL_MOST = 53  # streams that advance in one native call
POOL_BUSY = 54  # the flag of the pool, which a call takes that needs all of it; ENTRY_BUSY is the seat's
POOL_ENTRIES = 55  # of each number of streams the entry of a program (0 if there is none), its frame and its words
POOL_ENTRY_WORDS = 3

# words on a pool's streams
STREAMS_CAPACITY = 0
STREAMS_MARKS = 1  # address of a word for each stream, below zero while it takes no frames
STREAMS_NUMBER = 2  # what no check of ids has marked streams with so far
STREAMS_RUNNING = 3  # steps under way
STREAMS_ALONE = 4  # how many more steps do without a team
STREAMS_WORDS = 5
RUNNING = -4  # mark of a stream in a step under way

# words of an input or an output
VALUE_NAME = 0  # objects: its name and its dtype
VALUE_DTYPE = 1
VALUE_FLAGS = 2  # flags of NumPy's that it has to have
VALUE_RANK = 3
VALUE_SLOT = 4  # address of the slot that is pointed to it, 0 if it is copied
VALUE_TIME_AXIS = 5  # -1 if it has none
VALUE_ROW_AXIS = 6
VALUE_ITEM = 7  # bytes of an element
VALUE_DENSE = 8  # 1 if elements have to lie side by side along the last axis
VALUE_TABLE = 9  # rows of the table that ids point into, 0 if it holds no ids
VALUE_STAGE = 10  # memory for the value in time-major order, 0 if it is never needed
VALUE_ROW_BYTES = 11  # of one time step and row
VALUE_EQUAL = 12  # address of what it has to be equal to, 0 if it may be anything
VALUE_ARRAY = 13  # the array object of this call
VALUE_TIME = 14  # its bytes from one time step and from one row to the next
VALUE_ROW = 15
VALUE_SIZES = 16  # room for a new array's sizes
VALUE_DIMS = 24  # sizes, -1 for the time steps
MOST_AXES = 8
VALUE_WORDS = 32

# words of a copy between an array and the program's memory
COPY_VALUE = 0  # number of the input or the output; -1 if memory that stays is copied
COPY_SOURCE = 1  # where that memory is
COPY_PART = 2  # position on the array's first axis
COPY_WHOLE = 3  # 1 if it is all of the array; else the array is [parts, rows, …]
COPY_MEMORY = 4  # address in the program's memory
COPY_ROWS = 5
COPY_BYTES = 6  # of a row
COPY_STRIDE = 7  # bytes between rows in the program's memory
COPY_CLEARED = 8  # floats behind a row that are set to zero
COPY_WORDS = 9

# words of a mask: number of the input, address of its slot, memory for codes, 1 if time runs backwards
MASK_VALUE, MASK_SLOT, MASK_CODES, MASK_BACKWARDS = 0, 1, 2, 3
MASK_WORDS = 4

# bytes from the start of a Python object, and of an array object, to its fields (64-bit CPython)
OBJECT_TYPE = 8
OBJECT_SLOT = 16  # the first slot of an object whose class names its slots: 0 if it is empty
ARRAY_DATA = 16
ARRAY_RANK = 24
ARRAY_DIMS = 32
ARRAY_STRIDES = 40
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
JOB_WAITERS = 17  # threads that sleep until shares are done, or a worker has left
JOB_MUTEX = 24  # the system's: 64 bytes at most, and so the condition variables
JOB_CONDITION = 32
JOB_CONDITION_2 = 40
JOB_SYSTEM = 48  # addresses of the functions `SYSTEM_FUNCTIONS`, 0 where the system has none of that name
JOB_WORKERS = 56  # `WORKER_WORDS` a worker

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

# words of a worker; the first two, which others look at, lie on cache lines of their own
WORKER_TAKEN = 0  # a phase, and how many of its shares the worker has taken, and how many others have
WORKER_DONE = 8  # a phase, and how many of its shares are done
WORKER_GATE = 16  # the number of the job that the worker may enter; minus that when it is inside
WORKER_LEFT = 17  # the number of the last job that the worker has left
WORKER_THREAD = 18  # the system's number of its thread
WORKER_ASLEEP = 19  # 1 while it sleeps until the next job
WORKER_KEPT_OFF = 20  # the processor, counted from 1, that it was forbidden as it slept, or 0
WORKER_MASK = 24  # room for a set of 1024 processors
WORKER_WORDS = 40
MOST_SHARES = 6  # of one worker in one phase

# words of a run by a team: a program and the frames it is run with
RUN_JOB = 0
RUN_PROGRAM = 1
RUN_DRIVE = 2
RUN_ALONE = 3  # the frame with which one thread runs it alone
RUN_WORKERS = 4
RUN_FRAMES = 5

AXES = 5  # loops of a kernel over arrays of any shape, see kernels/arrays.py
TOGETHER = 48  # rows of a product outside segments: enough to use each weight often, few enough for sums to stay in L1

# element types and operations of kernels/integers.py
KINDS = {"bool": 0, "int8": 1, "uint8": 2, "int32": 3, "int64": 4, "float32": 5}
OPERATIONS = {
    "Add": 0, "Sub": 1, "Mul": 2, "And": 3, "Or": 4, "Xor": 5, "Not": 6, "Cast": 7, "Min": 8, "Max": 9,
    "Less": 10, "LessOrEqual": 11, "Greater": 12, "GreaterOrEqual": 13, "Equal": 14,
}  # fmt: skip  # those from "Less" on take float32 too
