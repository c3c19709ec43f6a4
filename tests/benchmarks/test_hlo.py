import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo import Traffic, bytes_of, parse, traffic

# A copy of 40 bytes: 80 moved.
COPY = "%y = f32[10]{0} copy(%x)"


def program(*lines, computations=""):
    body = "\n".join(f"  {line}" for line in lines)
    return parse(
        "HloModule m, entry_computation_layout={(f32[10]{0})->f32[10]{0}}\n\n"
        f"{computations}\n"
        f"ENTRY %main (x: f32[10]) -> f32[10] {{\n{body}\n}}\n"
    )


@pytest.mark.parametrize(
    ("type_", "num_bytes"),
    [
        ("f32[]", 4),
        ("bf16[3,5]{1,0}", 30),
        ("pred[7]", 7),
        ("s4[3]", 2),
        ("f8e4m3fn[3]", 3),
        ("token[]", 0),
        ("(f32[2]{0}, (s8[3]{0}, u64[1]{0}), /*index=2*/f16[2])", 8 + 3 + 8 + 4),
        # 21 in tiles of 128, 5 in tiles of 8.
        ("f32[2,5,21]{2,1,0:T(8,128)}", 4 * 2 * 8 * 128),
        # The same with the axis of 21 outermost: 2 in tiles of 8, 5 of 128.
        ("bf16[2,5,21]{1,0,2:T(8,128)(2,1)S(1)}", 2 * 21 * 8 * 128),
        ("s32[3]{0:T(1024)}", 4096),
        ("pred[]{:T(512)}", 512),
    ],
)
def test_bytes_of_a_type(type_, num_bytes):
    assert bytes_of(type_) == num_bytes


def test_operands_and_results_count_and_names_do_not():
    module = program(
        "%x = f32[10]{0} parameter(0)",
        "%c = f32[] constant(3)",
        "%b = f32[2,5]{1,0} bitcast(%x)",
        # 40 + 4 read, 40 written.
        '%s = f32[2,5]{1,0} add(%b, %c), metadata={op_name="f(x)"}',
        # 40 read, 40 + 8 written.
        '%t = (f32[10]{0}, s64[]) custom-call(%s), custom_call_target="sort"',
        "ROOT %r = f32[10]{0} get-tuple-element(%t), index=0",
    )
    assert traffic(module) == Traffic(84 + 88, 0)


def test_of_slices_the_slice_counts_and_of_updates_the_update():
    module = program(
        "%x = f32[10]{0} parameter(0)",
        "%i = s32[] constant(0)",
        "%s = f32[2]{0} dynamic-slice(%x, %i), dynamic_slice_sizes={2}",
        "ROOT %r = f32[10]{0} dynamic-update-slice(%x, %s, %i)",
    )
    assert traffic(module).num_bytes == 2 * 8 + 2 * 8


FUSED = """%fused (p: f32[10], q: f32[10], i: s32[]) -> f32[10] {
  %q = f32[10]{0} parameter(1)
  %p = f32[10]{0} parameter(0)
  %i = s32[] parameter(2)
  %n = f32[10]{0} negate(%p)
  %s = f32[2]{0} dynamic-slice(%n, %i), dynamic_slice_sizes={2}
  ROOT %r = f32[10]{0} dynamic-update-slice(%q, %s, %i)
}
"""


def test_fusion_reads_and_writes_what_its_parts_ask_for():
    module = program(
        "%x = f32[10]{0} parameter(0)",
        "%i = s32[] constant(0)",
        "ROOT %r = f32[10]{0} fusion(%x, %x, %i), kind=kLoop, calls=%fused",
        computations=FUSED,
    )
    # 2 of p's 10 elements, the index, and 2 elements written in place into q.
    assert traffic(module).num_bytes == 8 + 4 + 8


def loop(attributes, *, limit="constant(7)", step="constant(3)"):
    return program(
        "%x = f32[10]{0} parameter(0)",
        "%zero = s32[] constant(0)",
        "%start = s32[] copy(%zero)",
        "%t = (s32[], f32[10]{0}) tuple(%start, %x)",
        "%w = (s32[], f32[10]{0}) while(%t), condition=%test, body=%body" + attributes,
        "ROOT %r = f32[10]{0} get-tuple-element(%w), index=1",
        computations=f"""%body (a: (s32[], f32[10])) -> (s32[], f32[10]) {{
  %a = (s32[]{{:T(128)}}, f32[10]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %k = s32[] {step}
  %next = s32[] add(%i, %k)
  %x = f32[10]{{0}} get-tuple-element(%a), index=1
  {COPY}
  ROOT %t = (s32[], f32[10]{{0}}) tuple(%next, %y)
}}

%test (a: (s32[], f32[10])) -> pred[] {{
  %a = (s32[], f32[10]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %n = s32[] {limit}
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}}
""",
    )


# The counter's start costs a copy of 4 bytes; each round adds to it and copies.
START, ROUND = 8, 12 + 80


def test_body_of_a_loop_counts_as_often_as_it_runs():
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    assert traffic(loop(known)) == Traffic(START + 5 * ROUND, 0)
    # 0, 3, 6.
    assert traffic(loop("")) == Traffic(START + 3 * ROUND, 0)
    assert traffic(loop(""), every_round=False) == Traffic(START + ROUND, 0)


@pytest.mark.parametrize("unknown", [dict(limit="negate(%i)"), dict(step="negate(%i)")])
def test_loop_of_unknown_length_counts_once_and_is_said(unknown):
    counted = traffic(loop("", **unknown))
    assert counted.unknown_loops == 1
    assert counted.num_bytes == START + ROUND + (8 if "step" in unknown else 0)


BRANCHES = """%cheap (x: f32[10]) -> f32[10] {
  ROOT %x = f32[10]{0} parameter(0)
}

%dear (x: f32[10]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  ROOT %y = f32[10]{0} copy(%x)
}
"""


@pytest.mark.parametrize(
    "attributes",
    [
        "branch_computations={%cheap, %dear}",
        "true_computation=%dear, false_computation=%cheap",
    ],
)
def test_conditional_counts_the_branch_that_moves_most(attributes):
    module = program(
        "%x = f32[10]{0} parameter(0)",
        "%p = pred[] constant(true)",
        f"ROOT %y = f32[10]{{0}} conditional(%p, %x, %x), {attributes}",
        computations=BRANCHES,
    )
    assert traffic(module) == Traffic(80, 0)


def test_called_computations_count_and_asynchronous_copies_count_once():
    module = program(
        "%x = f32[10]{0} parameter(0)",
        "%y = f32[10]{0} call(%x), to_apply=%dear",
        "%s = (f32[10]{0}, f32[10]{0}, u32[]) copy-start(%y)",
        "ROOT %r = f32[10]{0} copy-done(%s)",
        computations=BRANCHES,
    )
    assert traffic(module) == Traffic(80 + 80, 0)


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="must have an ENTRY computation"):
        parse("HloModule m\n")


def test_text_of_a_compiler():
    def function(x):
        return jax.lax.scan(lambda c, row: (jnp.sin(c) + row, None), x[0], x)[0]

    x = jax.ShapeDtypeStruct((50, 1000), jnp.float32)
    text = jax.jit(function).lower(x).compile().as_text()
    counted = traffic(parse(text))
    # Each round reads a row, and reads and writes the sum, fused or in some parts.
    assert counted.unknown_loops == 0
    assert 3 * 50 * 4000 <= counted.num_bytes < 8 * 50 * 4000
