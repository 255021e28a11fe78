"""The tests' own small studies in a process of its own.

FOLDER JOBS runs one. FOLDER kills SEED runs one that is killed again and again, and then to its
end, in processes forked from this one, so that the imports are paid for once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from test_studies import quick_study, tiny_study

from losslandscape.lab import records, studies
from losslandscape.lab.data import load_dataset

KILLS = 20


def forked(work, *arguments):
    """Start ``work`` in a fork of this process."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work(*arguments)
        os._exit(0)
    return pid


def was_killed(pid):
    """Wait for a process; say whether it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def die_at(function, when):
    """Let this process die at its next call of a function of ``os``."""
    genuine = getattr(os, function)

    def fatal(*arguments):
        if when == "after":
            genuine(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, function, fatal)


class Study:
    """A study and what of it has been seen to be finished."""

    def __init__(self, root):
        self.study, self.root = quick_study(), root
        self.finished = {}

    def run(self, *fatal):
        if fatal:
            records.check_room = lambda _folder: None
            die_at(*fatal)
        studies.run_study(self.study, self.root)

    def check(self):
        """No record is damaged, none that was finished is lost or changed."""
        paths = sorted((self.root / self.study.name).glob("*.json"))
        for path in paths:
            records.load(path)
        now = {path.name: path.read_bytes() for path in paths}
        assert self.finished.items() <= now.items(), "a finished run was lost or changed"
        self.finished = now

    def left(self):
        return len(self.study.runs()) - len(self.finished)


def kills(root, seed):
    """Kill while a record is written and 20 times at random, then run to the end."""
    # What is imported at the first use, and would be imported in every fork.
    load_dataset("digits")
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    rng = random.Random(seed)
    tried = Study(root)
    for function, when, finished in (("fsync", "", 0), ("replace", "", 0), ("replace", "after", 1)):
        began = time.perf_counter()
        assert was_killed(forked(tried.run, function, when))
        one_run = time.perf_counter() - began
        tried.check()
        assert len(tried.finished) == finished, f"killed {when or 'at'} {function}"
    landed = 0
    while landed < KILLS:
        pid = forked(tried.run)
        time.sleep(rng.uniform(0, 1.5 * one_run))
        os.kill(pid, signal.SIGKILL)
        landed += was_killed(pid)
        tried.check()
        assert tried.left(), "the study ended before it had been killed often enough"
    print(f"killed {landed} times, {tried.left()} runs left", flush=True)
    assert not was_killed(forked(tried.run))
    tried.check()
    assert not tried.left()


if __name__ == "__main__":
    target, mode, *rest = sys.argv[1:]
    if mode == "kills":
        kills(Path(target), int(rest[0]))
    else:
        studies.run_study(tiny_study(), Path(target), jobs=int(mode))
