"""Strange values of `--config.FIELD`, parsed as `run.py` parses them."""

import sys

import pytest
from absl import flags
from guarding import check_line, fuzzed, unharmed
from hypothesis import given
from hypothesis import strategies as st
from test_config_values import FIELDS, VALUES

from segloss import cli
from segloss.config import parse_config
from segloss.errors import SeglossError, explain

_CONFIG = "--config=configs/demo.py:smoke"
_GIVEN = st.lists(
    st.tuples(st.sampled_from(FIELDS), VALUES).map("=".join) | st.text(max_size=8),
    min_size=1,
    max_size=2,
).map(lambda given: [f"--config.{x}" for x in given])


@pytest.fixture
def config(monkeypatch):
    """The flag `--config`, in place of the one that another test may have imported."""
    monkeypatch.setattr(sys, "argv", ["run.py"])
    others = [flags.FLAGS[name] for name in ("config",) if name in flags.FLAGS]
    for other in others:
        delattr(flags.FLAGS, other.name)
    yield cli.define_config("A config.", new_fields=True)
    delattr(flags.FLAGS, "config")
    for other in others:
        flags.FLAGS[other.name] = other


def _parse(config, argv):
    # Another test may have imported a command that requires this flag.
    required = ["--workdir=runs/x"] if "workdir" in flags.FLAGS else []
    sys.argv = ["run.py", *required, *argv]
    try:
        cli._parse(sys.argv)
        return config.value
    finally:
        flags.FLAGS.unparse_flags()
        for name in [x for x in flags.FLAGS if x.startswith("config.")]:
            delattr(flags.FLAGS, name)


def test_a_flag_is_taken_or_refused_in_a_line(config):
    @given(given=_GIVEN, first=st.booleans())
    @fuzzed(150)
    def check(given, first):
        argv = [_CONFIG, *given] if first else [*given, _CONFIG]
        with unharmed():
            try:
                parse_config(_parse(config, argv))
            except SystemExit as error:
                check_line(error.code.removeprefix("error: "))
            except SeglossError as error:
                check_line(explain(error))

    assert _parse(config, [_CONFIG, "--config.seed=7"]).seed == 7
    check()
