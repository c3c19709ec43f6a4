"""Values that processes exchange; the processes are real."""

import numpy as np
import pytest
from processes import run_together

from segloss import hosts

pytestmark = pytest.mark.shared_out(by="module")

VALUES = """
import numpy as np
from segloss import hosts
me = hosts.process_index()
for k in range(50):
    assert hosts.exchange({"k": k, "me": me}) == [{"k": k, "me": i} for i in range(3)]
big = np.arange(me + 1) + 2**40
for i, array in enumerate(hosts.exchange_arrays(big)):
    assert array.dtype == np.int64
    np.testing.assert_array_equal(array, np.arange(i + 1) + 2**40)
print(hosts.is_first(), hosts.process_count())
"""

IN_TURN = """
import pathlib, sys, time
from segloss import hosts
path = pathlib.Path(sys.argv[1])
def make():
    if not path.exists():
        time.sleep(1)
        path.write_text(f"by {hosts.process_index()}")
    return path.read_text()
print(hosts.after_first(make), hosts.after_first(make, on_each_host=True))
"""


def test_values_reach_all_processes_unchanged():
    outputs = run_together(VALUES, 3)
    assert [x.strip() for x in outputs] == ["True 3", "False 3", "False 3"]


def test_the_first_process_makes_what_the_others_read(tmp_path):
    outputs = run_together(IN_TURN, 3, tmp_path / "made")
    assert [x.strip() for x in outputs] == ["by 0 by 0"] * 3


def test_one_process_exchanges_with_itself():
    assert hosts.exchange([1, "a"]) == [[1, "a"]]
    np.testing.assert_array_equal(hosts.exchange_arrays(np.ones(2)), [np.ones(2)])
    assert hosts.after_first(lambda: 3, on_each_host=True) == 3
    assert hosts.is_first()
