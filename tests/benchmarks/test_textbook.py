import jax
import numpy as np
import pytest

from benchmarks.loss_rows import make_inputs, make_rows
from benchmarks.textbook import TEXTBOOK, confusion
from segloss.metrics import confusion_matrix

pytestmark = pytest.mark.shared_out

SHAPE = (2, 20, 30, 3)
ROWS, INPUTS = make_rows(SHAPE[-1]), make_inputs(SHAPE)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_textbook_has_the_value_and_the_gradient_of_ours(name):
    row = ROWS[name]
    logits, labels = INPUTS[row.inputs]
    with jax.numpy_rank_promotion("allow"):
        value, grad = jax.jit(jax.value_and_grad(TEXTBOOK[name]))(logits, labels)
    ours, our_grad = jax.jit(jax.value_and_grad(row.loss))(logits, labels)
    np.testing.assert_allclose(value, ours, rtol=2e-5)
    np.testing.assert_allclose(grad, our_grad, rtol=1e-3, atol=1e-6)


def test_textbook_confusion_counts_as_ours():
    predicted, labels = np.random.default_rng(0).integers(0, 3, (2, 4, 5))
    ours = confusion_matrix(predicted, labels, num_classes=3)
    np.testing.assert_array_equal(confusion(predicted, labels, 3), ours[:, :-1])
