"""Type checkers accept what users write, and find what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.shared_out

REPOSITORY = Path(__file__).parents[1]
SCRIPT = """
import jax
import jax.numpy as jnp
import numpy as np

from segloss import losses, metrics
from segloss.losses.balancing import median_frequency

logits = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
labels = jnp.zeros((2, 8, 8), jnp.int32)
weights = median_frequency(np.ones((4, 3), np.int64))


def objective(logits: jax.Array) -> jax.Array:
    entropy = losses.softmax_cross_entropy(logits, labels, class_weights=weights)
    dice = losses.soft_dice(logits, labels, labels != 255, smooth=1.0, per_image=True)
    return entropy + 0.5 * dice


value, gradient = jax.value_and_grad(objective)(logits)
loss = losses.compound_loss([(1, "focal_loss", {"gamma": 2}), (1, "soft_iou", {})])
print(loss(logits, labels), losses.make_loss("tversky", fn_weight=0.7)(logits, labels))
counts = metrics.confusion_matrix(logits.argmax(axis=-1), labels, num_classes=3)
print(metrics.summary(np.asarray(counts, np.int64))["mean_iou"])
"""
WRONG = "losses.soft_dice(logits, labels, smooth='a lot')"
CHECKERS = {
    "mypy": ["mypy", "--strict", "--follow-imports=silent", "--no-incremental"],
    "pyright": ["pyright", "--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_script_is_accepted_and_a_mistake_in_it_found(checker, tmp_path):
    def check(name, text):
        path = tmp_path / name
        path.write_text(text)
        return subprocess.run(
            [sys.executable, "-m", *CHECKERS[checker], path],
            cwd=REPOSITORY,
            env=os.environ | {"MYPYPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )

    right = check("right.py", SCRIPT)
    assert right.returncode == 0, right.stdout
    wrong = check("wrong.py", SCRIPT + WRONG)
    assert wrong.returncode == 1
    assert "smooth" in wrong.stdout
