"""The workers' protocol as a model: every order in which its threads can take their steps, one after another.

A step is one access to the words that threads share (`fastlstm.kernels.team` and `shares`, whose names are used here).
Threads are callers, which run jobs, and workers; a caller may also fork, and the first one dismisses the team. What
changes the time and nothing else is a choice: whether a thread looks once more or sleeps, whether it is patient with a
share's own worker, whether workers are woken for a job.

Memory is in one order for all threads here; that compiled accesses ask for that order is said in the kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["INVARIANTS", "BrokenError", "Explored", "Team", "explore"]

State = tuple[int, ...]

INVARIANTS = {
    "once": "each share of a phase is worked on exactly once",
    "in order": "no share of a phase begins before the phase before it is complete",
    "in time": "nobody is inside a job that has returned, or works for it",
    "complete": "a job that returns is complete",
    "alone": "no two jobs have the team at a time",
    "woken": "as long as somebody has not ended, somebody can go on: nobody sleeps for ever",
    "home": "at the end nobody holds the lock, has the team or is counted as asleep",
    "an end": "an end can be reached from every state",
}
SHARED = ("NUMBER", "ALIVE", "BUSY", "PHASE", "SLEEPERS", "WAITERS", "LOCK", "JOB", "CHILD")
EACH = ("GATE", "LEFT", "TAKEN", "DONE", "FRAME_PHASE", "OWN_DONE")  # of a worker
OF_SHARES = ("WORKED", "WORKING")  # what the invariants are about
BY_WORKER = 1 << 4  # in TAKEN and DONE a phase stands above eight and four bits of counts
OWN = (
    "at",
    "worker",
    "number",
    "job",
    "jobs",
    "phases",
    "share",
    "whose",
    "before",
    "count",
    "i",
    "place",
    "value",
    "then",
    "asleep",
)


class BrokenError(AssertionError):
    """An invariant does not hold; `name` says which, and `trace` the steps that lead there."""

    def __init__(self, name: str, trace: list[str] | None = None) -> None:
        super().__init__(f"not so that {INVARIANTS[name]}: {', '.join(trace or [])}")
        self.name = name


class Explored(NamedTuple):
    """How many states there are, how many steps between them, and how many states are ends."""

    states: int
    steps: int
    ends: int


class Machine:
    """The words of a state, as one thread uses them."""

    def __init__(self, team: Team, words: list[int], thread: int) -> None:
        self.team, self.words, self.thread = team, words, thread
        self.first = team.places["thread", thread]

    def __getitem__(self, name: object) -> int:
        return self.words[self.team.places[name]]

    def __setitem__(self, name: object, value: int) -> None:
        self.words[self.team.places[name]] = value

    def own(self, name: str) -> int:
        """Return a word of the thread's own."""
        return self.words[self.first + OWN.index(name)]

    def keep(self, **values: int) -> None:
        """Write words of the thread's own."""
        for name, value in values.items():
            self.words[self.first + OWN.index(name)] = value

    def goes_to(self, then: str) -> None:
        """Note where a step of several uses goes on."""
        self.keep(then=LABELS.index(then))

    def word(self, name: str, i: int, value: int, then: str) -> None:
        """Note the word that is published, or waited for, its value and what comes after."""
        self.keep(place=self.team.places[name, i], value=value)
        self.goes_to(then)

    def goes_on(self) -> str:
        """Return what comes after a step of several uses, and forget what it was used for."""
        then = LABELS[self.own("then")]
        self.keep(place=0, value=0, then=0)
        return then

    def wake_all(self, kind: int) -> None:
        """Wake the threads that sleep on a condition variable."""
        for thread in range(self.team.threads):
            at = self.team.places["thread", thread] + OWN.index("asleep")
            if self.words[at] == kind:
                self.words[at] = 0


FOR_A_JOB, FOR_A_WORD = 1, 2  # the two condition variables


# ---------------------------------------------------------------- a caller: team.lead, team.dismiss


def call(m: Machine) -> str | tuple[str, ...]:
    if not m.own("jobs"):
        return "end" if m.thread else "dismiss"
    m.keep(jobs=m.own("jobs") - 1)
    forks = m.team.forks and not m.thread and not m["CHILD"]
    return ("take", "fork") if forks else "take"


def fork(m: Machine) -> str:
    """Go on as the child, which has this thread alone, forgets the team's words and starts workers of its own."""
    kept = m.words[m.first : m.first + len(OWN)]
    m.words[:] = m.team.start()
    m.words[m.first : m.first + len(OWN)] = kept
    for other in range(1, m.team.callers):
        m.words[m.team.places["thread", other]] = LABELS.index("end")
    m["CHILD"] = 1
    return "take"


def take(m: Machine) -> str:
    if not m["ALIVE"]:
        return "call"  # it runs alone, and touches nothing of this
    busy, m["BUSY"] = m["BUSY"], 1
    return "call" if busy and m.team.without != "taking turns" else "prepare"


def prepare(m: Machine) -> str:
    if m["JOB"]:
        raise BrokenError("alone")
    m["JOB"] = 1 + m.thread * m.team.jobs + m.own("jobs")
    m.keep(job=m["JOB"], number=m["NUMBER"] + 1, i=1)
    for i in range(m.team.workers):
        m["FRAME_PHASE", i] = m["PHASE"]
    return "gates"


def gates(m: Machine) -> str:
    i = m.own("i")
    if i == m.team.workers:
        m.goes_to("begin")
        return "announce"
    m["GATE", i] = m.own("number")
    m.keep(i=i + 1)
    return "gates"


def announce(m: Machine) -> str:
    m["NUMBER"] += 1
    return "sleepers"


def sleepers(m: Machine) -> str | tuple[str, ...]:
    if not m["SLEEPERS"] or m.team.without == "waking workers":
        return m.goes_on()
    return "wake" if m.own("then") == END else ("wake", "let_sleep")


def let_sleep(m: Machine) -> str:
    """Wake no worker for a job, as where none has a processor of its own."""
    return m.goes_on()


def wake(m: Machine) -> str:
    if m["LOCK"]:
        return "blocked"
    m.wake_all(FOR_A_JOB)
    return m.goes_on()


def close(m: Machine) -> str:
    """Keep out a worker that has not come; wait for one that is inside."""
    i = m.own("i")
    if i == m.team.workers:
        return "finish"
    m.keep(i=i + 1)
    if m["GATE", i] == m.own("number"):
        m["GATE", i] = 0
    elif m.team.without != "waiting for who is inside":
        m.word("LEFT", i, m.own("number"), "close")
        return "wait"
    return "close"


def finish(m: Machine) -> str:
    m["PHASE"] = m["FRAME_PHASE", 0]
    inside = (Machine(m.team, m.words, thread).own("job") for thread in range(m.team.callers, m.team.threads))
    if any(inside):  # it may read its program and its frame, which are the next job's to write
        raise BrokenError("in time")
    if any(m["WORKED", share] != m["PHASE"] for share in range(m.team.workers * m.team.each(0))):
        raise BrokenError("complete")
    if any(m["WORKING", share] for share in range(m.team.most)):
        raise BrokenError("complete")
    m["JOB"] = 0
    return "give"


def give(m: Machine) -> str:
    m["BUSY"] = 0
    m.keep(number=0, job=0, i=0, share=0)
    return "call"


def dismiss(m: Machine) -> str:
    m["ALIVE"] = 0
    m.goes_to("end")
    return "announce"


# ---------------------------------------------------------------- a worker: team.follow


def look(m: Machine) -> str:
    return "seen" if m["NUMBER"] != m.own("number") else "doze"


def seen(m: Machine) -> str:
    m.keep(number=m["NUMBER"])
    return "alive"


def alive(m: Machine) -> str:
    return "enter" if m["ALIVE"] else "end"


def enter(m: Machine) -> str:
    i = m.own("worker")
    if m["GATE", i] != m.own("number"):
        return "look"
    m["GATE", i] = -m.own("number")
    m.keep(job=m["JOB"])
    return "begin"


def leave(m: Machine) -> str:
    m["FRAME_PHASE", m.own("worker")] = 0
    m.keep(job=0, i=0, share=0)
    m.word("LEFT", m.own("worker"), m.own("number"), "look")
    return "publish"


def doze(m: Machine) -> str:
    if m["LOCK"]:
        return "blocked"
    m["LOCK"] = 1
    m["SLEEPERS"] += 1
    return "sleep"


def sleep(m: Machine) -> str:
    """With the lock: look once more, then give it away and sleep, in one step."""
    if m["NUMBER"] != m.own("number") and m.team.without != "looking again":
        m["SLEEPERS"] -= 1
        m["LOCK"] = 0
        return "look"
    m["LOCK"] = 0
    m.keep(asleep=FOR_A_JOB)
    return "woken"


def woken(m: Machine) -> str:
    if m.own("asleep") or m["LOCK"]:
        return "blocked"
    m["LOCK"] = 1
    if m.team.without == "looking again":
        m["SLEEPERS"] -= 1
        m["LOCK"] = 0
        return "look"
    return "sleep"


# ---------------------------------------------------------------- both: shares.following, publish, wait_for


def begin(m: Machine) -> str:
    m.keep(phases=m.team.phases)
    return "phase"


def phase(m: Machine) -> str:
    if not m.own("phases"):
        m.keep(i=1)
        return "leave" if m.own("worker") else "close"
    m.keep(phases=m.own("phases") - 1, i=0)
    m["FRAME_PHASE", m.own("worker")] += 1
    return "next_share"


def next_share(m: Machine) -> str:
    """Look at what is left of the shares of a worker: of oneself first, then of the others."""
    i, now, each = m.own("i"), m["FRAME_PHASE", m.own("worker")], m.team.each(m.own("phases"))
    if i == m.team.workers:
        m.keep(i=0)
        return "all_done"
    whose = (m.own("worker") + i) % m.team.workers
    before = m["TAKEN", whose]
    counts = before & 0xFF if before >> 8 == now else 0
    if before >> 8 > now or (counts >> 4) + (counts & 0xF) >= each:
        m.keep(i=i + 1)
        if i or not m["OWN_DONE", whose]:
            return "next_share"
        m.keep(whose=whose, count=m["OWN_DONE", whose])
        m["OWN_DONE", whose] = 0
        return "look_done"
    taken = counts & 0xF if i else counts >> 4
    direction = m.own("worker") if m.team.without == "one direction" else now & 1
    from_the_last = direction != (i > 0)
    m.keep(before=before, whose=whose, share=whose * each + (each - 1 - taken if from_the_last else taken))
    return "take_share"


def take_share(m: Machine) -> str:
    whose, before, now = m.own("whose"), m.own("before"), m["FRAME_PHASE", m.own("worker")]
    m.keep(before=0, whose=0)
    if m["TAKEN", whose] != before:
        return "next_share"
    counted = before if before >> 8 == now else now << 8
    new = counted + (1 if m.own("i") else BY_WORKER)
    if m.team.without == "taking at once":
        m.keep(before=new, whose=whose)
        return "take_share_later"
    m["TAKEN", whose] = new
    return "work"


def take_share_later(m: Machine) -> str:
    m["TAKEN", m.own("whose")] = m.own("before")
    m.keep(before=0, whose=0)
    return "work"


def work(m: Machine) -> str:
    share, now = m.own("share"), m["FRAME_PHASE", m.own("worker")]
    if m["JOB"] != m.own("job"):
        raise BrokenError("in time")
    if m["WORKING", share] or m["WORKED", share] >= now:
        raise BrokenError("once")
    if any(m["WORKED", other] < now - 1 for other in range(m.team.workers * m.team.each(m.own("phases") + 1))):
        raise BrokenError("in order")
    m["WORKING", share] = 1
    return "done"


def done(m: Machine) -> str:
    share, now = m.own("share"), m["FRAME_PHASE", m.own("worker")]
    if m["JOB"] != m.own("job"):
        raise BrokenError("in time")
    m["WORKING", share], m["WORKED", share] = 0, now
    m.keep(i=0, share=0)
    whose = share // m.team.each(m.own("phases"))
    if whose == m.own("worker"):
        m["OWN_DONE", whose] += 1
        return "next_share"
    m.keep(whose=whose, count=1)
    return "look_done"


def look_done(m: Machine) -> str:
    m.keep(before=m["DONE", m.own("whose")])
    return "add_done"


def add_done(m: Machine) -> str:
    whose, before, now = m.own("whose"), m.own("before"), m["FRAME_PHASE", m.own("worker")]
    if m["DONE", whose] != before and m.team.without != "counting at once":
        return "look_done"
    m["DONE", whose] = (before if before >> 4 == now else now << 4) + m.own("count")
    m.keep(before=0, whose=0, count=0)
    m.goes_to("next_share")
    return "waiters"


def all_done(m: Machine) -> str:
    i = m.own("i")
    if i == m.team.workers or m.team.without == "waiting for shares":
        return "phase"
    m.keep(i=i + 1)
    m.word("DONE", i, m["FRAME_PHASE", m.own("worker")] << 4 | m.team.each(m.own("phases")), "all_done")
    return "wait"


def publish(m: Machine) -> str:
    m.words[m.own("place")] = m.own("value")
    return "waiters"


def waiters(m: Machine) -> str:
    return "wake_waiters" if m["WAITERS"] and m.team.without != "waking who waits" else m.goes_on()


def wake_waiters(m: Machine) -> str:
    if m["LOCK"]:
        return "blocked"
    m.wake_all(FOR_A_WORD)
    return m.goes_on()


def wait(m: Machine) -> str:
    return m.goes_on() if m.words[m.own("place")] >= m.own("value") else "tire"


def tire(m: Machine) -> str:
    if m["LOCK"]:
        return "blocked"
    m["LOCK"] = 1
    if m.team.without != "counting who waits first":
        m["WAITERS"] += 1
    return "look_again"


def look_again(m: Machine) -> str:
    if m.words[m.own("place")] >= m.own("value"):
        if m.team.without != "counting who waits first":
            m["WAITERS"] -= 1
        m["LOCK"] = 0
        return m.goes_on()
    if m.team.without == "counting who waits first":
        return "count_late"
    m["LOCK"] = 0
    m.keep(asleep=FOR_A_WORD)
    return "stir"


def count_late(m: Machine) -> str:
    m["WAITERS"] += 1
    m["LOCK"] = 0
    m.keep(asleep=FOR_A_WORD)
    return "stir_late"


def stir_late(m: Machine) -> str:
    if m.own("asleep") or m["LOCK"]:
        return "blocked"
    m["LOCK"] = 1
    m["WAITERS"] -= 1
    return "look_again"


def stir(m: Machine) -> str:
    if m.own("asleep") or m["LOCK"]:
        return "blocked"
    m["LOCK"] = 1
    return "look_again"


STEPS = (
    *(call, fork, take, prepare, gates, announce, sleepers, let_sleep, wake, close, finish, give, dismiss),
    *(look, seen, alive, enter, leave, doze, sleep, woken),
    *(begin, phase, next_share, take_share, take_share_later, work, done, look_done, add_done, all_done),
    *(publish, waiters, wake_waiters, wait, tire, look_again, count_late, stir_late, stir),
)
LABELS = (*(step.__name__ for step in STEPS), "end")
END = LABELS.index("end")
ITS_OWN = frozenset(LABELS.index(label) for label in ("let_sleep", "leave", "begin", "phase", "all_done"))
"""Steps that touch nothing of other threads and that nobody sees: in whatever order they come, the states behind them
are the same, so one order is enough."""


class Team:
    """A team and what is done with it.

    Parameters
    ----------
    workers : int
        The caller counted.
    callers : int
        Threads that run jobs.
    jobs, phases : int
        Of each caller, and of each job.
    shares : tuple of int
        Of each worker in the last phase of a job, in the one before it, and so on, over and over.
    forks : bool
        Whether the first caller may fork before a job; the child is then followed.
    without : str
        A part of the protocol that is left out, for tests of the checker.
    """

    def __init__(
        self,
        workers: int,
        callers: int = 1,
        jobs: int = 1,
        phases: int = 1,
        shares: tuple[int, ...] = (1,),
        forks: bool = False,
        without: str = "",
    ) -> None:
        self.workers, self.callers, self.jobs, self.phases = workers, callers, jobs, phases
        self.shares, self.forks, self.without = shares, forks, without
        self.most = workers * max(shares)
        self.threads = callers + workers - 1
        names: list[object] = [*SHARED, *((name, i) for name in EACH for i in range(workers))]
        names += [(name, i) for name in OF_SHARES for i in range(self.most)]
        self.places = {name: place for place, name in enumerate(names)}
        for thread in range(self.threads):
            self.places["thread", thread] = len(names) + thread * len(OWN)

    def each(self, left: int) -> int:
        """Return how many shares each worker has of a phase after which so many are left of its job."""
        return self.shares[left % self.phases % len(self.shares)]

    def start(self) -> State:
        """Return the state in which the team has been started and nobody has called it."""
        state = [0] * (self.places["thread", 0] + self.threads * len(OWN))
        state[self.places["ALIVE"]] = 1
        for thread in range(self.threads):
            m = Machine(self, state, thread)
            if thread < self.callers:
                m.keep(at=LABELS.index("call"), jobs=self.jobs)
            else:
                m.keep(at=LABELS.index("look"), worker=thread - self.callers + 1)
        return tuple(state)

    def successors(self, state: State) -> Iterator[tuple[int, int, State]]:
        """Yield each step that a thread can take: the thread, the step's number, and the state behind it."""
        at = [state[self.places["thread", thread]] for thread in range(self.threads)]
        quiet = [thread for thread in range(self.threads) if at[thread] in ITS_OWN]
        for thread in quiet[:1] or range(self.threads):
            label = at[thread]
            if label == END:
                continue
            m = Machine(self, list(state), thread)
            following = STEPS[label](m)
            for then in (following,) if isinstance(following, str) else following:
                if then != "blocked":
                    m.keep(at=LABELS.index(then))
                    yield thread, label, tuple(m.words)

    def check_end(self, state: State) -> None:
        """Raise `BrokenError` if a state without a step is none to stop in."""
        if any(state[self.places["thread", thread]] != END for thread in range(self.threads)):
            raise BrokenError("woken")
        if any(state[self.places[name]] for name in ("LOCK", "BUSY", "SLEEPERS", "WAITERS")):
            raise BrokenError("home")


def explore(team: Team) -> Explored:
    """Visit every state; raise `BrokenError` with the steps that lead to one in which an invariant does not hold."""
    start = team.start()
    came: dict[State, tuple[State, str] | None] = {start: None}
    backwards: dict[State, list[State]] = {}
    ends, steps, waiting = [], 0, [start]
    while waiting:
        state = waiting.pop()
        try:
            found = list(team.successors(state))
            if not found:
                team.check_end(state)
                ends.append(state)
        except BrokenError as broken:
            raise BrokenError(broken.name, _trace(came, state)) from None
        steps += len(found)
        for thread, label, new in found:
            backwards.setdefault(new, []).append(state)
            if new not in came:
                came[new] = state, f"{thread} {LABELS[label]}"
                waiting.append(new)
    reaching, waiting = set(ends), list(ends)
    while waiting:
        for before in backwards.get(waiting.pop(), ()):
            if before not in reaching:
                reaching.add(before)
                waiting.append(before)
    for state in came.keys() - reaching:
        raise BrokenError("an end", _trace(came, state))
    return Explored(len(came), steps, len(ends))


def _trace(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    """Return the steps that have led to a state."""
    steps = []
    while (before := came[state]) is not None:
        state, step = before
        steps.append(step)
    return steps[::-1]


def main() -> None:
    """Explore one team and print what was found."""
    parser = argparse.ArgumentParser(description="Every state of a team: the invariants are checked in each.")
    for name, count in {"workers": 2, "callers": 1, "jobs": 2, "phases": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument(
        "--shares", type=int, nargs="+", default=(1,), help="of each worker, phase by phase from the last"
    )
    parser.add_argument("--forks", action="store_true")
    found = explore(Team(**vars(parser.parse_args())))
    print(f"{found.states:,} states, {found.steps:,} steps between them, {found.ends} ends; in each of them:")
    for name, invariant in INVARIANTS.items():
        print(f"  {name:10}{invariant}")


if __name__ == "__main__":
    main()
