"""Runs in a folder of another file system, which is a local one behind fsspec here."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import chex
import fsspec
import pytest
from PIL import Image

from segloss.config import read_config
from segloss.errors import ExistingFileError, MissingFileError, SeglossError
from segloss.remote import lock as remote_lock
from segloss.remote import opened, upload
from segloss.train import Stopped, train
from segloss.trained import evaluate_run, export, predict

sys.path.append(str(Path(__file__).parents[1] / "train"))
from runs import curve, newest_state

pytestmark = pytest.mark.shared_out(by="module")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where copies of remote folders are made, so that a test sees what is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_run_is_trained_and_used_in_a_remote_folder(
    tiny_config, tmp_path, finished_run, temporary, capsys
):
    bucket, url = tmp_path / "bucket", f"file://{tmp_path}/bucket/run"
    run = bucket / "run"
    results = train(tiny_config, url + "/")
    assert curve(run) == curve(finished_run)
    a, b = (newest_state(tiny_config, w) for w in (finished_run, run))
    chex.assert_trees_all_equal(a.state, b.state)
    expected = json.loads((finished_run / "results.json").read_text())
    assert json.loads((run / "results.json").read_text()) == results
    assert results["confusion"] == expected["confusion"]
    assert (run / "figures/examples.png").is_file()
    assert list((run / "tensorboard").iterdir())
    assert not (run / ".lock").exists()
    assert f"pictures: {url}/figures/examples.png" in capsys.readouterr().out

    config = read_config(url)
    assert config.to_json_best_effort() == read_config(run).to_json_best_effort()
    assert evaluate_run(config, url)["confusion"] == expected["confusion"]
    evaluated = run / "evaluations/val_4/results.json"
    assert json.loads(evaluated.read_text())["confusion"] == expected["confusion"]

    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 32)).save(photo)
    (predictions,) = predict(config, url, photo)
    assert predictions.directory == f"{url}/predictions/photo"
    with Image.open(run / "predictions/photo/indices/photo.png") as ids:
        assert ids.size == (32, 32)
    with pytest.raises(ExistingFileError) as refused:
        predict(config, url, photo)
    assert str(refused.value) == (
        f"{url}/predictions/photo exists, and nothing replaces predictions there; "
        "delete it, or choose another --output."
    )
    assert predict(config, url, photo, output=tmp_path / "out")[0].num_images == 1

    assert export(config, url) == f"{url}/exported"
    names = {"model.bin", "model.json", "serving.py"}
    assert {path.name for path in (run / "exported").iterdir()} == names
    assert not list(temporary.iterdir())


def losses(workdir):
    return [line["loss"] for line in curve(workdir) if "loss" in line]


def test_stopped_run_is_uploaded(tiny_config, tmp_path, finished_run):
    def stop(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    # Only the signal makes it save here, at no step that a checkpoint is due.
    tiny_config.checkpoint_every_steps = 4
    tiny_config.evaluate_every_steps = 4
    with pytest.raises(Stopped):
        train(tiny_config, f"file://{tmp_path}/bucket/run", on_step=stop)
    run = tmp_path / "bucket/run"
    assert losses(run) == losses(finished_run)[:2]
    assert (run / "checkpoints/2/_CHECKPOINT_METADATA").exists()
    assert newest_state(tiny_config, run).step == 2


@pytest.fixture
def memory():
    """A file system of this process alone, which is empty before and after."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def write(fs, path, text="x"):
    fs.pipe_file(path, text.encode())


def test_local_folder_is_yielded_as_it_is(tmp_path):
    with opened(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"
    with opened(str(tmp_path / "run"), exclusive=True) as folder:
        assert folder == tmp_path / "run"


def test_only_changed_files_are_uploaded_and_removed_checkpoints_removed(memory):
    for step in ("2", "4"):
        write(memory, f"/b/run/checkpoints/{step}/_CHECKPOINT_METADATA")
        write(memory, f"/b/run/checkpoints/{step}/meta/metadata", step)
    write(memory, "/b/run/checkpoints/6/meta/metadata", "killed in mid-upload")
    write(memory, "/b/run/metrics.jsonl", "a")
    write(memory, "/b/run/predictions/photo/indices/a.png")
    with opened("memory://b/run", exclusive=True) as folder:
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")}
        found |= {p.name for p in (folder / "checkpoints").iterdir()}
        assert found == {"metrics.jsonl", "2", "4"}
        assert not memory.exists("/b/run/checkpoints/6")
        assert memory.exists("/b/run/.lock")
        write(memory, "/b/run/metrics.jsonl", "not changed here")
        for path in (folder / "checkpoints/2").rglob("*"):
            if path.is_file():
                path.unlink()
        (folder / "config.json").write_text("{}")
    assert memory.cat_file("/b/run/config.json") == b"{}"
    assert memory.cat_file("/b/run/metrics.jsonl") == b"not changed here"
    assert not memory.exists("/b/run/checkpoints/2")
    assert memory.cat_file("/b/run/checkpoints/4/meta/metadata") == b"4"
    assert memory.exists("/b/run/predictions/photo/indices/a.png")
    assert not memory.exists("/b/run/.lock")


def test_checkpoint_gets_its_marker_last(memory, monkeypatch):
    put, order = type(memory).put_file, []

    def put_file(self, local, remote, **kwargs):
        order.append(remote)
        put(self, local, remote, **kwargs)

    monkeypatch.setattr(type(memory), "put_file", put_file)
    with opened("memory://b/run") as folder:
        for name in ("a", "_CHECKPOINT_METADATA", "z"):
            (folder / "checkpoints/2").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints/2" / name).write_text("x")
        (folder / "metrics.jsonl").write_text("x")
    assert order[0] == "/b/run/metrics.jsonl"
    assert order[-1] == "/b/run/checkpoints/2/_CHECKPOINT_METADATA"
    assert len(order) == 4


def test_files_are_uploaded_before_the_one_that_lists_them(memory, monkeypatch):
    put, order = type(memory).put_file, []

    def put_file(self, local, remote, **kwargs):
        order.append(remote.removeprefix("/b/run/"))
        put(self, local, remote, **kwargs)

    monkeypatch.setattr(type(memory), "put_file", put_file)
    lists = {"results.json", "exported/model.json", "predictions/a/predictions.jsonl"}
    others = {"confusions.npz", "exported/serving.py", "predictions/a/scores.json"}
    with opened("memory://b/run") as folder:
        for name in lists | others:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x")
    assert (set(order[:3]), set(order[3:])) == (others, lists)


def test_error_names_the_remote_path(memory):
    with pytest.raises(MissingFileError) as missing:
        read_config("memory://b/run")
    assert str(missing.value).startswith("memory://b/run/config.json is missing; train")


def test_failed_upload_is_tried_again_and_the_last_one_keeps_the_files(
    memory, monkeypatch, temporary
):
    put, calls = type(memory).put, []

    def refuse(self, *args, **kwargs):
        raise ConnectionError("no route")

    def refuse_once(self, *args, **kwargs):
        calls.append(args)
        return (put if calls[1:] else refuse)(self, *args, **kwargs)

    monkeypatch.setattr(type(memory), "put", refuse_once)
    with opened("memory://b/run") as folder:
        (folder / "config.json").write_text("{}")
        upload(folder, after=lambda: None)
        with pytest.warns(UserWarning, match="no route.* The next upload tries again"):
            upload(folder, after=lambda: None)
    assert memory.cat_file("/b/run/config.json") == b"{}"

    monkeypatch.setattr(type(memory), "put", refuse)
    with pytest.raises(SeglossError) as failed, opened("memory://b/run") as folder:
        (folder / "config.json").write_text("[]")
    (kept,) = temporary.glob("segloss-kept-*/run")
    assert str(failed.value) == (
        "memory://b/run cannot be used (ConnectionError: no route); check the path, "
        f"the permissions and the network. The files of the run are kept in {kept}."
    )
    assert (kept / "config.json").read_text() == "[]"
    assert [path.name for path in temporary.iterdir()] == [kept.parent.name]


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in {"_RENEW_S": 0.01, "_STALE_S": 0.2, "_POLL_S": 0.02}.items():
        monkeypatch.setattr(remote_lock, name, seconds)


@pytest.mark.usefixtures("quick")
def test_second_run_in_the_same_remote_folder_is_refused(memory):
    with opened("memory://b/run", exclusive=True):
        with (
            pytest.warns(UserWarning, match="was in use by process .* watches for"),
            pytest.raises(SeglossError) as refused,
            opened("memory://b/run", exclusive=True),
        ):
            pass
        owner = " ".join(memory.cat_file("/b/run/.lock").decode().split()[:2])
    pid, host = owner.split()
    assert str(refused.value) == (
        f"memory://b/run is in use by process {pid} on {host}; wait for it, or end it "
        "with `kill` there, which saves its state, or choose another --workdir."
    )
    assert not memory.exists("/b/run/.lock")


@pytest.mark.usefixtures("quick")
def test_lock_of_a_dead_process_is_taken_over(memory):
    write(memory, "/b/run/.lock", "1 another-host 0123 7\n")
    with (
        pytest.warns(UserWarning, match="in use by process 1 on another-host"),
        opened("memory://b/run", exclusive=True),
    ):
        assert str(os.getpid()) in memory.cat_file("/b/run/.lock").decode()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = remote_lock.socket.gethostname()
    write(memory, "/b/run/.lock", f"{ended.pid} {host} 0123 7\n")
    with opened("memory://b/run", exclusive=True):
        pass
    assert not memory.exists("/b/run/.lock")


@pytest.mark.usefixtures("quick")
def test_lock_makes_missing_folders_where_files_need_them(tmp_path):
    fs = fsspec.filesystem("file", auto_mkdir=False)  # like sftp
    with remote_lock.RemoteLock(fs, f"{tmp_path}/new/run", "sftp://host/new/run"):
        assert (tmp_path / "new/run/.lock").exists()
    assert not (tmp_path / "new/run/.lock").exists()


def lose_lock(memory):
    with opened("memory://b/run", exclusive=True) as folder:
        (folder / "config.json").write_text("{}")
        write(memory, "/b/run/.lock", "1 other 0123 7\n")
        (renewing,) = (t for t in threading.enumerate() if t.name == "renew lock")
        renewing.join(10)
        upload(folder, after=lambda: None)


@pytest.mark.usefixtures("quick")
def test_run_whose_lock_was_taken_over_stops_at_its_next_upload(memory):
    with pytest.raises(SeglossError, match="was taken over by process 1 on other"):
        lose_lock(memory)
    assert memory.cat_file("/b/run/.lock").startswith(b"1 other")
    assert not memory.exists("/b/run/config.json")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "gopher://b/run",
            "--workdir=gopher://b/run: there is no file system gopher://; well-known "
            "ones are gs, s3, az, hf, sftp and file.",
        ),
        (
            "memory://",
            "--workdir=memory:// names no folder; give one, as in gs://b/run.",
        ),
        (
            "memory://b/[1]",
            "--workdir=memory://b/[1]: checkpoints cannot be read from a path with '[' "
            "in it; choose a directory without any of * ? [ \\.",
        ),
    ],
)
def test_wrong_url_is_one_line(tiny_config, url, message):
    with pytest.raises(SeglossError) as wrong:
        train(tiny_config, url)
    assert str(wrong.value) == message


def test_missing_package_is_named(tiny_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SeglossError) as wrong:
        train(tiny_config, "gs://bucket/run")
    assert str(wrong.value) == (
        "--workdir=gs://bucket/run needs a package that is missing; run "
        "`pip install gcsfs`."
    )


@pytest.mark.parametrize("field", ["data.data_dir", "model.pretrained"])
def test_other_paths_must_be_local(tiny_config, tmp_path, field):
    section, name = field.split(".")
    tiny_config[section][name] = "gs://bucket/data"
    with pytest.raises(SeglossError) as wrong:
        train(tiny_config, tmp_path / "run")
    assert str(wrong.value) == (
        f"config.{field}: gs://bucket/data must be on this machine or a mounted disk; "
        "copy it, or mount the bucket, for example with gcsfuse."
    )
    assert not (tmp_path / "run").exists()


def test_input_and_output_of_predict_must_be_local(tiny_config):
    with pytest.raises(SeglossError, match="--input: s3://b/images must be on this"):
        predict(tiny_config, "memory://b/run", "s3://b/images")
    with pytest.raises(SeglossError, match="--output: s3://b/out must be on this"):
        predict(tiny_config, "memory://b/run", ["x"], output="s3://b/out")
