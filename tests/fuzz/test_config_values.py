"""Strange fields and values of a config, in every way that sets them."""

import pytest
from guarding import fuzzed, line_of, unharmed
from hypothesis import example, given
from hypothesis import strategies as st

from configs import demo
from segloss.config import change_fields, follow_names, parse_config
from segloss.errors import SeglossError
from segloss.train import CHOICES, make_setup

FIELDS = [
    *("seed", "total_steps", "log_every_steps", "mapping", "data", "data.name"),
    *("data.crop_hw", "data.num_threads", "data.on_bad_sample", "data.data_dir"),
    "data.classes",
    *("augment", "augment.scale_range", "augment.flip_probability", "sampler"),
    *("sampler.name", "sampler.batch_max", "sampler.batch_cl", "model", "model.name"),
    *("model.depth", "model.width", "model.norm", "model.pretrained", "loss"),
    *("loss.name", "loss.class_weights", "loss.weight", "optimizer", "optimizer.name"),
    *("optimizer.clip", "optimizer.momentum", "schedule", "schedule.learning_rate"),
    *("schedule.warmup_steps", "evaluate", "evaluate.scales", "evaluate.flip"),
    *("evaluate.window_hw", "evaluate.max_pixels", "evaluate.ignore_classes_in_mean"),
    *("model.__class__", "loss.a.b", "", ".", "data.", "__dict__", "locked", "keys"),
]
_WORDS = [
    *("unet", "fcn", "resnet", "sgd", "adam", "focal_loss", "soft_dice", "random"),
    *("nan", "inf", "-1", "0", "1e400", "None", "True", "()", "[]", "{}", "{[]: 1}"),
    *("{1: 2}", "{'name': 'unet'}", "[{'name': 'soft_dice'}]", "{'a.b': 1}", "@a"),
    *("${seed}", "~nobody/x", "/dev/zero", "../..", "'\\x00'", "__import__('os')"),
    *("9" * 5000, "(" * 300, "-" * 9999 + "1", "[" * 150 + "]" * 150, "{'': 3}"),
]
VALUES = (
    st.sampled_from(_WORDS)
    | st.text(max_size=6)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda x: (
            st.lists(x, max_size=3)
            | st.tuples(x, x)
            | st.dictionaries(st.sampled_from(["name", "gamma", "a"]), x, max_size=2)
        ),
        max_leaves=4,
    ).map(repr)
)
_CHANGES = st.lists(
    st.tuples(st.sampled_from(FIELDS), VALUES).map("=".join) | st.text(max_size=8),
    min_size=1,
    max_size=2,
)


@given(changes=_CHANGES)
@example(changes=["seed=" + "(" * 300])
@example(changes=["seed=" + "-" * 9999 + "1"])
@example(changes=["model={1: 2}"])
@example(changes=["loss={'name': {}}"])
@fuzzed(250)
def test_a_change_is_taken_or_refused_in_a_line(changes):
    given_fields = [change.split("=")[0] for change in changes]
    with unharmed():
        try:
            config = change_fields(demo.get_config("smoke"), changes)
            parse_config(follow_names(config, given_fields, CHOICES))
        except SeglossError as error:
            line_of(error)


@pytest.mark.slow
def test_a_run_is_set_up_or_refused_in_a_line(tiny_config):
    make_setup(tiny_config)  # prepares the data, and compiles what a sampler calls

    @given(changes=_CHANGES)
    @fuzzed(200)
    def check(changes):
        given_fields = [change.split("=")[0] for change in changes]
        if any(field.startswith(("data", "sampler")) for field in given_fields):
            return
        with unharmed(tiny_config.data.data_dir, memory=2**33):
            try:
                config = change_fields(tiny_config, changes)
                make_setup(follow_names(config, given_fields, CHOICES))
            except SeglossError as error:
                line_of(error)

    check()
