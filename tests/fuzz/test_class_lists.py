"""Damaged and malicious classes.txt."""

import os

from guarding import check_line, fuzzed, mutated, unharmed
from hypothesis import given
from hypothesis import strategies as st

from segloss.data.datasets.classes_file import read_classes

_SOUND = (
    b"0 background\n1 road #804080\n2 car #0000ff values=13,14\nvoid values=0,255\n",
    b"\xef\xbb\xbf# a comment\r\n0 ground\r\n1 tall tree values=7\r\n",
    b"0 a\n" + b"1 b " + b"values=9 " * 20 + b"\n",
)
_LINES = st.lists(
    st.text(max_size=12)
    | st.sampled_from(
        ["0 a", "1 b", "void", " values=", " #0000ff", "\x1b[31m", "9" * 9]
    )
).map(lambda parts: " ".join(parts).encode(errors="surrogatepass"))


def read(folder, data):
    (folder / "classes.txt").write_bytes(data)
    with unharmed():
        found = read_classes(folder, 255)
    for fault in found.faults:
        check_line(str(fault))
    assert bool(found.faults) == (found.values is None)
    for name in found.names:
        check_line(name.replace("\u200c", "").replace("\u200d", ""))
    return [str(fault) for fault in found.faults]


@given(data=mutated(_SOUND) | st.lists(_LINES).map(b"\n".join))
@fuzzed(300)
def test_classes_are_read_or_refused_in_lines(tmp_path_factory, data):
    read(tmp_path_factory.getbasetemp(), data)


def test_a_line_of_many_spaces_ends(tmp_path):
    line = b"1 b" + b" " * 200_000 + b"c" + b" values=3" * 200_000
    assert read(tmp_path, b"0 a\n" + line) == []


def test_a_number_of_many_digits_is_refused(tmp_path):
    (fault,) = read(tmp_path, b"0 a values=" + b"9" * 5000)
    assert fault.startswith("classes.txt line 1: must have values <= 65535, got 1000")


def test_terminal_codes_are_no_name(tmp_path):
    (fault,) = read(tmp_path, b"0 a\x1b[31m\n")
    assert fault == (
        "classes.txt line 1: must have a name of letters that can be printed, got "
        r"'a\x1b[31m'; rename it"
    )


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "classes.txt")
    with unharmed():
        (fault,) = read_classes(tmp_path, 255).faults
    assert str(fault) == "classes.txt: must be a file of text; rewrite it"


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "classes.txt").open("wb") as file:
        file.truncate(2**40)
    with unharmed(memory=2**28):
        (fault,) = read_classes(tmp_path, 255).faults
    assert str(fault) == (
        "classes.txt: must have at most 16,777,216 bytes, got 1,099,511,627,776; "
        "rewrite it"
    )
