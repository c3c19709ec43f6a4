"""Arrays that the first of several real processes sends to all."""

import pytest
from processes import run_together

pytestmark = pytest.mark.shared_out(by="module")

SCRIPT = """
import jax.numpy as jnp
import numpy as np
from segloss import hosts
from segloss.hosts import broadcasting
broadcasting._WORDS = 8  # several parts, of which the last is shorter
arrays = {
    "float32": np.array([[np.nan, -0.0, 1e-45], [np.inf, -1.0, 3.0]], np.float32),
    "int64": np.arange(5) + 2**40,
    "bfloat16": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    "bool": np.array([True, False, True]),
    "number": np.array(2**63, np.uint64),
    "empty": np.zeros((0, 3), np.float16),
    "strided": np.arange(12, dtype=np.int8).reshape(3, 4).T,
}
found = hosts.arrays_of_first(arrays if hosts.is_first() else None)
assert list(found) == list(arrays)
for name, array in arrays.items():
    assert found[name].dtype == array.dtype, name
    assert found[name].shape == array.shape, name
    assert found[name].tobytes() == array.tobytes(), name
print("same")
"""


def test_arrays_of_all_types_arrive_bit_for_bit():
    for output in run_together(SCRIPT, 2, devices=2):
        assert output.splitlines()[-1] == "same", output
