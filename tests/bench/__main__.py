"""Run the benchmarks whose figures the README quotes, one after the other, each with its defaults.

    python tests/bench [NAME ...]       default: all of them, 40 minutes

Each is a script of its own beside this one, which says what it measures and takes arguments. Leave
the machine alone meanwhile. `peers` compares with those packages that are installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

NAMES = ("table", "rates", "open_loop", "service", "lag", "busy_reclaim", "large_values", "shed",
         "tenants", "swapoff", "stores", "full_queue", "pool_limit", "policies", "gc_pause",
         "overhead", "blocking", "peers")  # fmt: skip


def main() -> int:
    """Return how many of them failed."""
    parser = argparse.ArgumentParser(prog="python tests/bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names
    for name in names:
        if name not in NAMES:
            parser.error(f"there is no {name!r}: NAME is one of {', '.join(NAMES)}")
    failed = 0
    for name in names or NAMES:
        print(f"\n== {name}.py", flush=True)
        script = Path(__file__).with_name(f"{name}.py")
        failed += subprocess.run([sys.executable, script], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
