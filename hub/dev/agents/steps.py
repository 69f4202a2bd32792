"""An agent that takes its time and shows who it is: `steps.py [COUNT [SECONDS]]`.

Its first line is a mark made once, so that a reader can tell one life of it from another: pid, start time, and
random hex. Then a line per step, and at last the same mark again.
"""

import os
import sys
import time


def main(count: int, pause_s: float) -> None:
    """Report `count` steps, `pause_s` seconds apart."""
    mark = f"mark={os.urandom(6).hex()} pid={os.getpid()}"
    print(f"begin {mark}", flush=True)
    for step in range(1, count + 1):
        time.sleep(pause_s)
        print(f"step {step}/{count}", flush=True)
    print(f"end {mark}", flush=True)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 10,
        float(sys.argv[2]) if len(sys.argv) > 2 else 0.5,
    )
