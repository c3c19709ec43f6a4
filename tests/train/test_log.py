"""What a run that goes on makes of the scalars that it finds."""

import pytest

from segloss.train.log import MetricWriter

LINES = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


def test_lines_past_the_step_and_cut_ones_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES + '{"step": 3, "loss": 1.5}\n{"step": 3, "lo')
    with MetricWriter(tmp_path, start_step=2) as writer:
        assert writer.has(2, "loss")
        assert not writer.has(3, "loss")
        writer.write(3, {"loss": 0.5})
    assert path.read_text() == LINES + '{"step": 3, "loss": 0.5}\n'


def test_an_empty_file_has_no_lines(tmp_path):
    # A run that is killed before its first line leaves it.
    (tmp_path / "metrics.jsonl").touch()
    with MetricWriter(tmp_path, start_step=2) as writer:
        assert writer.values("loss") == []


def test_a_full_disk_costs_no_line(tmp_path, full_disk):
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES + '{"step": 3, "loss": 1.5}\n')
    with full_disk(30), pytest.raises(OSError, match="File too large"):
        MetricWriter(tmp_path, start_step=2)
    assert path.read_text() == LINES + '{"step": 3, "loss": 1.5}\n'


def test_nan_is_null_in_the_file_and_no_point_in_tensorboard(tmp_path, caplog):
    with MetricWriter(tmp_path, start_step=0) as writer:
        writer.write(1, {"iou": float("nan"), "loss": float("inf"), "accuracy": 0.5})
    line = '{"step": 1, "iou": null, "loss": null, "accuracy": 0.5}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == line
    assert caplog.text == ""
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"accuracy" in events.read_bytes()
    assert b"iou" not in events.read_bytes()
    assert b"loss" not in events.read_bytes()


def test_a_full_disk_names_the_file(tmp_path, full_disk):
    with MetricWriter(tmp_path, start_step=0) as writer, full_disk(300):
        for step in range(20):
            writer.write(step, {"loss": 0.123456789})
        with pytest.raises(OSError, match="File too large") as refused:
            writer.flush()
    assert refused.value.filename == str(tmp_path / "metrics.jsonl")


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    damaged = b'{"loss": 1}\n[1, 2]\nnull\n{"step": "a"}\n\xff\n{"step": 1, "lo\n'
    path.write_bytes(LINES.encode() + damaged + b'{"step": 2, "val": 0.5}\n{"st')
    message = r"metrics\.jsonl: 6 damaged lines are left out; the first is line 3\.$"
    with (
        pytest.warns(UserWarning, match=message),
        MetricWriter(tmp_path, start_step=2) as writer,
    ):
        assert writer.values("val") == [(2, 0.5)]
    assert path.read_text() == LINES + '{"step": 2, "val": 0.5}\n'


def test_a_file_that_was_replaced_is_not_written_on(tmp_path):
    with MetricWriter(tmp_path, start_step=0) as writer:
        writer.write(1, {"loss": 2.0})
        writer.flush()
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").write_text(LINES)
        with pytest.raises(ValueError, match="moved, deleted or replaced"):
            writer.flush()
    assert (tmp_path / "metrics.jsonl").read_text() == LINES
