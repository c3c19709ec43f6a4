"""Runs of a config in one or several real processes, and what they leave."""

import json

import numpy as np
from processes import free_port

from segloss.train.log import OF_THE_MACHINE
from segloss.trained.checkpoints import Checkpoints

# Trains as one process of a run. PROCESS=SIGNAL=STEP sends a signal to that process
# after a step, and PROCESS=SIGNAL=MODULE.FUNCTION where it calls a function. After
# PROCESS=0=STEP, no file of that process can grow past a kilobyte, as on a full disk.
TRAIN = """
import importlib, os, resource, signal, sys
from pathlib import Path
from segloss import hosts
from segloss.config import read_config
from segloss.train import train

def on_step(step):
    for number, at in plan:
        if at == str(step) and number:
            os.kill(os.getpid(), number)
        elif at == str(step):
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, most))

def signal_at(path, number):
    owner, name = path.rsplit(".", 1)
    module, *classes = owner.split(":")
    owner = importlib.import_module(module)
    for each in classes:
        owner = getattr(owner, each)
    function = getattr(owner, name)
    def called(*args, **kwargs):
        if name == "save":  # while it is written in the background
            function(*args, **kwargs)
        os.kill(os.getpid(), number)
        return function(*args, **kwargs)
    setattr(owner, name, called)

if __name__ == "__main__":
    workdir, port, count, me = sys.argv[1], *map(int, sys.argv[2:5])
    given = [x.split("=") for x in sys.argv[5:]]
    plan = [(int(n), at) for i, n, at in given if int(i) == me]
    for number, at in plan:
        if not at.isdecimal():
            signal_at(at, number)
    hosts.start(f"127.0.0.1:{port}", count, me)
    train(read_config(Path(workdir)), workdir, on_step=on_step)
"""


def commands_of(workdir, config, count, *plan):
    """The commands of `count` processes; `plan` has the signals that they get."""
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(config.to_json_best_effort())
    port = free_port()
    return [["-c", TRAIN, workdir, port, count, i, *plan] for i in range(count)]


def wait_for(processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def lines_of(workdir):
    return list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))


def newest_arrays(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    stored = checkpoints.read(items=("variables", "optimizer"))
    checkpoints.close()
    return stored.step, stored.arrays


def assert_same_run(a, b):
    """Same rows of the log, final state and results, to the rounding of float32."""
    lines_a, lines_b = lines_of(a), lines_of(b)
    assert [(x["step"], x.keys()) for x in lines_a] == [
        (x["step"], x.keys()) for x in lines_b
    ]
    for x, y in zip(lines_a, lines_b, strict=True):
        for name in x.keys() - set(OF_THE_MACHINE):
            np.testing.assert_allclose(x[name], y[name], rtol=1e-5, err_msg=name)
    assert_same_end(a, b)


def assert_same_end(a, b):
    """Same final state and results, to the rounding of float32."""
    (step_a, arrays_a), (step_b, arrays_b) = newest_arrays(a), newest_arrays(b)
    assert step_a == step_b
    for path in arrays_a:
        np.testing.assert_allclose(
            arrays_a[path], arrays_b[path], rtol=1e-4, atol=1e-5, err_msg=path
        )
    results = [json.loads((x / "results.json").read_text()) for x in (a, b)]
    for name in ("confusion", "images_seen", "step"):
        assert results[0][name] == results[1][name]
