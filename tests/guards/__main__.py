"""`make guards [only=TEXT]`: takes one guard after the other out of the code and sees a test fail.

A guard that nothing misses is a guard without a test. The files are put back whatever happens; run it on a checkout
without changes. It takes minutes: CI runs the tests, not this.
"""

import subprocess
import sys
from pathlib import Path

from guard import Guard
from guards import GUARDS
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]


def noticed(guard: Guard) -> bool | None:
    """Whether a test failed without the guard; None where the code does not read so any more."""
    path = ROOT / guard.file
    before = path.read_text()
    if before.count(guard.guarded) != 1:
        return None
    try:
        path.write_text(before.replace(guard.guarded, guard.unguarded))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *guard.tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{guard.against}: the tests did not run\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 1
    finally:
        path.write_text(before)


def main() -> int:
    console = Console(highlight=False)
    chosen = [guard for guard in GUARDS if all(word in guard.against for word in sys.argv[1:])]
    amiss = 0
    for number, guard in enumerate(chosen, 1):
        outcome = noticed(guard)
        said = {True: "[green]a test failed[/]", False: "[red]nothing noticed[/]", None: "[red]not found[/]"}[outcome]
        amiss += outcome is not True
        console.print(f"{number:3}/{len(chosen)}  {guard.against}: {said}")
    console.print(f"{len(chosen) - amiss} of {len(chosen)} guards are missed when they are gone")
    return 1 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
