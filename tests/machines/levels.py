"""Run tests as on each plainer processor whose code this one runs: ``make test-levels``. The others are named."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from chosen import TESTS, command

from fastlstm.target import LEVELS, machine


def main(words: list[str]) -> int:
    """Run the tests, or those that `words` name, on every level but this machine's; return 1 if one fails."""
    here = machine.detect()
    failed = []
    for name, level in LEVELS.items():
        missing = machine.lacks(name)
        if missing:
            print(f"{name}: not run, this processor lacks {', '.join(sorted(missing))}")
            continue
        if level.code == here.code:
            print(f"{name}: this processor's own, which make test runs")
            continue
        print(name, flush=True)
        environment = {**os.environ, "FASTLSTM_TARGET": name}
        with tempfile.TemporaryDirectory() as scratch:
            tests = command(sys.executable, words or TESTS, machine.cores())
            done = subprocess.run(tests, env=environment, cwd=scratch, check=False)
        failed += [name] * bool(done.returncode)
    print(f"levels: {', '.join(failed)} FAILED" if failed else "levels: all passed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
