"""run.py in a process that kills itself at a given moment; see `killing.MOMENTS`.

python tests/chaos/killed_run.py KIND PATTERN COUNT FLAGS_OF_RUN
"""

import functools
import itertools
import os
import pkgutil
import re
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def kill_at_file(event: str, pattern: str, count: int) -> None:
    """Kills the process at the `count`-th audit event of a path with `pattern`.

    Python raises `event`, such as "open" or "os.rename", before it does what it says.
    """
    seen = itertools.count(1)

    def hook(name: str, arguments: tuple) -> None:
        if name != event or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if re.search(pattern, os.fsdecode(arguments[0])) and next(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_at_call(function: str, count: int) -> None:
    """Kills the process at the `count`-th call of a function, by its name.

    `function` is "module.function" or "module:class.function".
    """
    place, _, name = function.rpartition(".")
    owner = pkgutil.resolve_name(place)
    whole, seen = getattr(owner, name), itertools.count(1)

    @functools.wraps(whole)
    def deadly(*args, **kwargs):
        if next(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    kind, pattern, count, *flags = sys.argv[1:]
    sys.path[0] = str(ROOT)
    if kind == "call":
        kill_at_call(pattern, int(count))
    else:
        kill_at_file(kind, pattern, int(count))
    sys.argv = [str(ROOT / "run.py"), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")
