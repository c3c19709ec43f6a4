"""Time to import the losses and metrics, relative to the time to import jax.

python -m benchmarks.imports

Each round is a new process that imports jax first, then segloss.losses and
segloss.metrics, including jaxtyping.
"""

import statistics
import subprocess
import sys

from benchmarks.timing import ratio

ROUNDS = 9
CODE = """
import time
start = time.perf_counter()
import jax
between = time.perf_counter()
import segloss.losses, segloss.metrics
print(between - start, time.perf_counter() - between)
"""


def main() -> None:
    """Prints both times and their ratio in one line."""
    rounds = []
    for _ in range(ROUNDS + 1):
        run = [sys.executable, "-c", CODE]
        printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
        rounds.append(tuple(map(float, printed.split())))
    jax_seconds, our_seconds = zip(*rounds[1:], strict=True)  # the first fills caches
    jax_ms, our_ms = (1e3 * statistics.median(x) for x in (jax_seconds, our_seconds))
    print(
        f"import jax {jax_ms:.0f} ms, then segloss.losses and segloss.metrics "
        f"{our_ms:.0f} ms: {ratio(our_seconds, jax_seconds)} of the time for jax"
    )


if __name__ == "__main__":
    main()
