"""What a command says of an exception: one line for a user's mistake, else all."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from segloss.errors import MissingFileError, SeglossError, explain

ROOT = Path(__file__).parents[1]

COMMAND = """
import sys
from segloss import cli
CONFIG = cli.define_config("A config.", new_fields={new_fields})

def main(argv):
    {body}

cli.run(main)
"""


def run(*args, body="print(CONFIG.value)", new_fields=False):
    """Runs a command whose `main` is `body`, in a process of its own."""
    code = COMMAND.format(body=body, new_fields=new_fields)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def refused(*args, **how):
    """The one line of a command that must fail without a traceback."""
    code, stdout, stderr = run(*args, **how)
    assert (code, stdout) == (1, "")
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr.removeprefix("error: ").rstrip("\n")


CONFIG_FILE = """
from ml_collections import ConfigDict

def get_config(size="full"):
    config = ConfigDict(dict(seed=0, loss=[dict(name="a", weight=1.0)], hw=(1, 2)))
    config.model = dict(name="unet", depth=4, flip=False)
    return config.lock()
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG_FILE)
    return path


def test_a_users_mistake_is_its_message():
    assert explain(SeglossError("width must be >= 1, got 0.")) == (
        "width must be >= 1, got 0."
    )
    assert explain(MissingFileError("no such file.")) == "no such file."
    assert explain(SeglossError()) == "SeglossError"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device: the disk at /"),
        (errno.EACCES, "Permission denied; change its permissions"),
        (errno.EROFS, "Read-only file system; choose a place that can be written to"),
        (errno.EIO, "Input/output error."),
    ],
)
@pytest.mark.parametrize("path", ["runs/a", b"runs/a", Path("runs/a")])
def test_a_fault_of_the_file_system_names_path_and_remedy(number, words, path):
    import os

    error = OSError(number, os.strerror(number), path)
    assert explain(error).startswith(f"runs/a: {words}")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes (2,) and (3,) differ"),
        OSError("cannot identify image"),
        OSError(errno.EPIPE, "Broken pipe"),
        AttributeError("no field"),
        KeyError("x"),
        FloatingPointError("NaN"),
        RuntimeError(),
    ],
    ids=repr,
)
def test_any_other_exception_is_not_explained(error):
    assert explain(error) is None


@pytest.mark.parametrize(
    "raised",
    ["ValueError('bad shape')", "AttributeError()", "OSError()", "KeyError(3)"],
)
def test_a_bug_keeps_its_traceback(raised):
    code, _, stderr = run(body=f"raise {raised}")
    assert code == 1
    assert "Traceback" in stderr
    assert "in main" in stderr
    assert stderr.rstrip().splitlines()[-1].startswith(raised.split("(")[0])
    assert "error: " not in stderr


def test_a_mistake_in_main_is_one_line_and_a_traceback_on_request(tmp_path):
    body = f"open({str(tmp_path / 'none' / 'x')!r}, 'w')"
    assert refused(body=body) == (
        f"{tmp_path}/none/x: No such file or directory; check the path."
    )
    body = "from segloss.errors import SeglossError; raise SeglossError('one is odd.')"
    assert refused(body=body) == "one is odd."
    code, _, stderr = run("--verbosity=1", body=body)
    assert code == 1
    assert "Traceback" in stderr


@pytest.mark.parametrize(
    ("text", "exception"),
    [
        ("def get_config(): return {}['model']", "KeyError: 'model'"),
        ("def get_config(): return 1 + 'x'", "TypeError: unsupported operand"),
        ("def get_config(): raise ValueError()", "ValueError"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config(:", "SyntaxError: "),
        ("open('none/x')\n", "FileNotFoundError: "),
    ],
)
def test_a_bug_of_a_config_file_keeps_its_traceback(tmp_path, text, exception):
    path = tmp_path / "buggy.py"
    path.write_text(f"{text}\n")
    if "FileNotFound" in exception:  # a fault of the file system, which is explained
        assert refused(f"--config={path}").startswith("none/x: No such file")
        return
    code, _, stderr = run(f"--config={path}")
    assert code == 1
    assert f'File "{path}", line 1' in stderr
    assert stderr.rstrip().splitlines()[-1].startswith(exception)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def get_config(): return 3", "get_config must return a ConfigDict, got int."),
        ("config = 3", "has no function get_config."),
        (
            "from segloss.errors import SeglossError\n"
            "def get_config(): raise SeglossError('size must be small.')",
            "size must be small.",
        ),
    ],
)
def test_a_config_file_that_cannot_be_used_is_one_line(tmp_path, text, line):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    assert refused(f"--config={path}").endswith(line)


def test_the_file_of_a_config_is_checked(tmp_path, config_file):
    assert "there is no file none.py in " in refused("--config=none.py")
    assert "must be a Python file, *.py" in refused("--config=none.json:smoke")
    code, stdout, _ = run(f"--config={config_file}:smoke")
    assert (code, "unet" in stdout) == (0, True)
    path = tmp_path / "plain.py"
    path.write_text(CONFIG_FILE.replace('size="full"', ""))
    assert "get_config takes no argument after the colon" in refused(
        f"--config={path}:smoke"
    )


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--config.seed=abc", "--config.seed=abc: the value must be an integer."),
        ("--config.seed=1e20", "--config.seed=1e20: the value must be an integer."),
        ("--config.model.flip=2", "--config.model.flip=2: the value must be True or "),
        ("--config.model=3", "--config.model=3: the value must be a section such as "),
        ("--config.sead=1", "--config.sead=1: config has no field 'sead'; known are h"),
        ("--config.modl.x=1", "--config.modl.x=1: config has no field 'modl'; known a"),
        (
            "--config.model.deep=3",
            "--config.model.deep=3: config.model has no field 'deep'; known are dep",
        ),
        ("--config.seed.x=1", "--config.seed.x=1: config.seed has no field 'x'; known"),
        (
            "--config.loss.name=x",
            "--config.loss.name=x: config.loss is a list; --set=\"loss={'name': ...}\"",
        ),
        ("--config.loss[0].gamma=2", "--config.loss[0].gamma=2: config.loss is a list"),
        ("--config.loss=x", "--config.loss=x: config.loss is a list; --set="),
        ("--confi.seed=1", "Unknown command line flag 'confi.seed'"),
    ],
)
def test_a_wrong_field_is_one_line(config_file, flag, line):
    assert refused(f"--config={config_file}", flag).startswith(line)


def test_a_field_without_a_config_says_what_else_changes_it():
    assert refused("--config.seed=1") == (
        "--config.seed needs --config=FILE before it; without a file, --set=seed=VALUE "
        "changes the config that is stored in --workdir."
    )


def test_a_field_that_the_config_lacks_is_set_where_the_command_checks_it(config_file):
    flags = (
        f"--config={config_file}",
        "--config.model.rate=2",
        "--config.loss[0].weight=3",
    )
    code, stdout, _ = run(
        *flags, new_fields=True, body="print(CONFIG.value.model.rate)"
    )
    assert (code, stdout) == (0, "2\n")
    assert "config.model has no field 'rate'" in refused(*flags)
