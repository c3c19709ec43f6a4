"""Work that processes share: bytes reach the first, and one interrupts all."""

import pytest
from processes import run_together

pytestmark = pytest.mark.shared_out(by="module")

PARTS = """
from segloss import hosts
me, received = hosts.process_index(), []
sent = [bytes([me]) * 3_000_000, b"", b"end of %d" % me] if me else []
hosts.send_to_first(sent, lambda sender, part: received.append((sender, part)))
if hosts.is_first():
    assert received == [
        (1, bytes([1]) * 3_000_000), (1, b"end of 1"),
        (2, bytes([2]) * 3_000_000), (2, b"end of 2"),
    ]
assert hosts.exchange(me) == [0, 1, 2]
"""

# In every round, one process raises, early or while it waits for the others.
INTERRUPTED = """
import itertools, time
from segloss import hosts
me = hosts.process_index()

def work(rounds, raising):
    def check():
        if raising:
            raise hosts.Interrupted(me + 10)
    try:
        with hosts.shared_work(check) as poll:
            for _ in rounds:
                time.sleep(0.05)
                poll()
            if raising and rounds:
                check()
    except hosts.Interrupted as error:
        return error.reason

forever = itertools.count()
assert work([1], raising=False) is None
assert work([1] if me == 1 else forever, raising=me == 1) == 11
assert work([] if me == 2 else forever, raising=me == 2) == 12
assert work([1], raising=me != 1) == 10, "all take the reason of the first process"
assert work([1], raising=False) is None
assert hosts.exchange(me) == [0, 1, 2]
"""

FAILED = """
from segloss import hosts
try:
    with hosts.shared_work(lambda: None) as poll:
        if hosts.is_first():
            poll()
            raise ValueError("a bug")
except ValueError:
    print("failed")
else:
    raise AssertionError("the first process has not finished")
"""


def test_the_first_process_receives_the_parts_of_the_others_in_order():
    run_together(PARTS, 3)


def test_one_process_ends_the_work_of_all_with_its_reason():
    run_together(INTERRUPTED, 3)


def test_a_single_process_works_as_without_others():
    assert run_together(FAILED, 1) == ["failed\n"]
