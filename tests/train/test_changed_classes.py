"""What is said where the classes of a dataset changed."""

import pytest

from segloss.trained.classes import describe_changed_classes

pytestmark = pytest.mark.shared_out(by="module")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (["road", "car"], ""),
        (["road", "car", "bus", "sky"], "added bus, sky"),
        (["car"], "removed road"),
        (["road", "bus"], "added bus; removed car"),
        (["car", "road"], "the order changed"),
    ],
)
def test_changes_are_named(now, said):
    assert describe_changed_classes(("road", "car"), now) == said
