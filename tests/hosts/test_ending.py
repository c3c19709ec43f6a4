"""If one process of a run ends, however it ends, so do the others, with one line."""

import re
import signal

import pytest
from processes import free_port, running

pytestmark = pytest.mark.shared_out(by="module")

# What one process does, once all have met: `hosts.exchange` waits for the others.
PROGRAM = """
import os, signal, sys
from segloss import hosts
from segloss.errors import SeglossError
from segloss.hosts import watch

def work(me, how):
    hosts.exchange(None)
    if me == int(sys.argv[3]):
        if how == "error":
            raise SeglossError("image 7 is damaged; repair it.")
        if how == "bug":
            raise ZeroDivisionError("a bug")
        os.kill(os.getpid(), int(how))
    print("waits", flush=True)
    hosts.exchange(None)

if __name__ == "__main__":
    watch.SILENCE_S = 4
    port, me, _, how = sys.argv[1:]
    hosts.start(f"127.0.0.1:{port}", 2, int(me))
    with hosts.watched():
        work(int(me), how)
"""


KILLED_OR_HUNG = [
    signal.SIGKILL,
    pytest.param(signal.SIGSTOP, marks=pytest.mark.slow),
]


def end(culprit, how):
    """Ends process `culprit` of two; returns the codes and outputs of both."""
    port = free_port()
    commands = [["-c", PROGRAM, port, i, culprit, how] for i in range(2)]
    with running(commands, devices=1) as processes:
        if how == int(signal.SIGSTOP):
            other = processes[1 - culprit]
            outputs = {1 - culprit: other.communicate(timeout=60)[0]}
            processes[culprit].kill()
            outputs[culprit] = processes[culprit].communicate(timeout=60)[0]
        else:
            outputs = {i: p.communicate(timeout=60)[0] for i, p in enumerate(processes)}
        return [p.returncode for p in processes], outputs


def last_line(output):
    return output.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("culprit", "how", "said"),
    [
        pytest.param(0, "bug", "ZeroDivisionError: a bug", marks=pytest.mark.slow),
        (1, "error", "image 7 is damaged; repair it"),
    ],
)
def test_error_of_one_process_ends_the_other_and_names_it(culprit, how, said):
    codes, outputs = end(culprit, how)
    assert codes == [1, 1]
    assert last_line(outputs[culprit]).endswith(("repair it.", "Error: a bug"))
    assert re.fullmatch(
        rf"error: process {culprit} on \S+: {said}; process "
        rf"{1 - culprit} ends too; the same command resumes\.",
        last_line(outputs[1 - culprit]),
    )


@pytest.mark.parametrize("number", KILLED_OR_HUNG)
def test_killed_or_hung_process_ends_the_first(number):
    codes, outputs = end(1, int(number))
    assert codes == [1, -signal.SIGKILL]
    assert re.fullmatch(
        r"error: process 1 on \S+ gave no sign of life for 4 s: it was killed, or it "
        r"hangs; process 0 ends too; the same command resumes\.",
        last_line(outputs[0]),
    )
    if number == signal.SIGSTOP:  # then process 0 is gone when process 1 is killed
        return
    assert re.fullmatch(
        r"error: process 1 on \S+ ended without notice: it was killed, such as for "
        r"lack of memory, or crashed; the other processes end too; the same command "
        r"resumes\.",
        last_line(outputs[1]),
    )


@pytest.mark.parametrize("number", KILLED_OR_HUNG)
def test_killed_or_hung_first_process_ends_the_others(number):
    codes, outputs = end(0, int(number))
    lost = "no longer answers at 127.0.0.1:PORT: it has ended,"
    line = re.sub(r"(?<=127.0.0.1:)\d+", "PORT", last_line(outputs[1]))
    if number == signal.SIGSTOP:
        assert codes == [-signal.SIGKILL, 1]
        assert line == (
            f"error: process 0 {lost} or it hangs; process 1 ends too; the same "
            "command resumes."
        )
    else:
        # JAX itself may abort the process first.
        assert codes in ([-signal.SIGKILL, -signal.SIGABRT], [-signal.SIGKILL, 1])
        assert re.fullmatch(
            rf"error: process (1 on \S+ ended without notice, because process 0|0) "
            rf"{lost} .*; the same command resumes\.",
            line,
        )
