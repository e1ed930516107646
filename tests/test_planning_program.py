"""What a plan reads from the text of a compiled program: trips of loops, bytes of memory, and collectives."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.mesh import AXES
from gnp_scale.planning import collectives
from gnp_scale.planning.collectives import parse_groups
from gnp_scale.planning.hlo import Program
from gnp_scale.planning.traffic import memory_bytes

MESH = SimpleNamespace(devices=np.zeros((2, 4, 1)), axis_names=AXES, shape=dict(zip(AXES, (2, 4, 1), strict=True)))
NESTED = """\
HloModule nested

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_body (p.0: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.0 = (s32[], f32[8]{0:T(128)}) parameter(0)
  %n.0 = s32[] get-tuple-element(%p.0), index=0
  %v.0 = f32[8]{0:T(128)} get-tuple-element(%p.0), index=1
  %reduced = f32[8]{0:T(128)} all-reduce(%v.0), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %t.0 = (s32[], f32[8]{0:T(128)}) tuple(%n.0, %reduced)
}

%inner_condition (p.1: (s32[], f32[8])) -> pred[] {
  %limit.1 = s32[] constant(5)
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[] compare(%n.1, %limit.1), direction=LT
}

%outer_body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[], f32[8]{0}) parameter(0)
  ROOT %loop.2 = (s32[], f32[8]{0}) while(%p.2), condition=%inner_condition, body=%inner_body
}

%outer_condition (p.3: (s32[], f32[8])) -> pred[] {
  %p.3 = (s32[], f32[8]{0}) parameter(0)
  ROOT %true.3 = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = (s32[], f32[8]{0}) parameter(0)
  ROOT %loop = (s32[], f32[8]{0}) while(%a), condition=%outer_condition, body=%outer_body, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""

ASYNC = """\
HloModule async

%fused_start (s.0: f32[4]) -> f32[16] {
  %s.0 = f32[4]{0} parameter(0)
  ROOT %gather.0 = f32[16]{0} all-gather(%s.0), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%fused_done (s.1: f32[4]) -> f32[16] {
  %s.1 = f32[4]{0} parameter(0)
  ROOT %gather.1 = f32[16]{0} all-gather(%s.1), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

ENTRY %main (a: f32[4]) -> f32[16] {
  %a = f32[4]{0} parameter(0)
  %start = f32[16]{0} fusion(%a), kind=kCustom, calls=%fused_start
  %mean = f32[4]{0} all-reduce(%a), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%fused_done
  %scalar = f32[4]{0} all-reduce(%mean), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%fused_done
  ROOT %done = f32[16]{0} fusion(%scalar), kind=kCustom, calls=%fused_done
}
"""

SCATTERED = """\
HloModule scattered

%all-reduce-scatter.2 (x.0: f32[16]) -> f32[4] {
  %x.0 = f32[16]{0} parameter(0)
  %sum.0 = f32[16]{0} all-reduce(%x.0), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %own = u32[] partition-id()
  ROOT %part = f32[4]{0} dynamic-slice(%sum.0, %own), dynamic_slice_sizes={4}
}

ENTRY %main (a: f32[16]) -> f32[4] {
  %a = f32[16]{0} parameter(0)
  ROOT %shard = f32[4]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.2
}
"""

SLICED = """\
HloModule sliced

%fused (stack: f32[12,1024], number: s32[], part: f32[1,1024]) -> f32[12,1024] {
  %stack = f32[12,1024]{1,0} parameter(0)
  %number = s32[] parameter(1)
  %part = f32[1,1024]{1,0} parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[12,1024]{1,0} dynamic-update-slice(%stack, %part, %number, %zero)
}

%fused.1 (whole: f32[12,1024], place: s32[]) -> f32[1,1024] {
  %whole = f32[12,1024]{1,0} parameter(0)
  %place = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %row = f32[1,1024]{1,0} dynamic-slice(%whole, %place, %zero.1), dynamic_slice_sizes={1,1024}
  ROOT %negated = f32[1,1024]{1,0} negate(%row)
}

ENTRY %main (a: f32[12,1024], i: s32[], b: f32[1,1024]) -> f32[12,1024] {
  %a = f32[12,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[1,1024]{1,0:T(8,128)S(1)} parameter(2)
  %write = f32[12,1024]{1,0} fusion(%a, %i, %b), kind=kLoop, calls=%fused
  %read = f32[1,1024]{1,0} fusion(%write, %i), kind=kLoop, calls=%fused.1
  ROOT %copied = f32[12,1024]{1,0} copy(%write)
}
"""


def test_the_body_of_a_loop_in_a_loop_runs_as_often_as_both_say():
    program = Program.parse(NESTED)
    assert (program.runs["outer_body"], program.runs["inner_body"], program.runs["add"]) == (3, 15, 0)
    (reduced,) = collectives.find(program, MESH, slice_size=4)
    # A ring sends twice three quarters of the 32 bytes.
    assert (reduced.kind, reduced.axes, reduced.num_bytes, reduced.runs) == ("all-reduce", ("fsdp",), 48, 15)
    assert not reduced.is_slow


def test_a_loop_without_a_known_end_counts_once_and_is_told():
    program = Program.parse(NESTED.replace('{"known_trip_count":{"n":"3"}}', "{}"))
    assert (program.runs["inner_body"], program.num_unknown_loops) == (5, 1)
    assert Program.parse(NESTED).num_unknown_loops == 0


def test_a_collective_in_two_fusions_counts_once_and_two_with_one_number_count_twice():
    found = collectives.find(Program.parse(ASYNC), MESH, slice_size=4)
    assert sorted((each.kind, each.axes, each.is_slow) for each in found) == [
        ("all-gather", ("fsdp",), False),
        ("all-reduce", ("replica",), True),
        ("all-reduce", ("replica",), True),
    ]
    assert {each.kind: each.num_bytes for each in found} == {"all-gather": 3 * 16, "all-reduce": 16}


def test_an_all_reduce_in_one_kernel_with_the_slice_of_its_result_is_a_reduce_scatter():
    (found,) = collectives.find(Program.parse(SCATTERED), MESH, slice_size=4)
    # A ring sends three quarters of the 64 bytes.
    assert (found.kind, found.axes, found.num_bytes) == ("reduce-scatter", ("fsdp",), 48)


def test_of_a_stack_only_the_part_counts_that_is_read_or_replaced():
    program = Program.parse(SLICED)
    moved = {
        instruction.name: memory_bytes(program, computation, instruction)
        for computation, instruction, _ in program.launched()
    }
    row, stack, number = 4096, 12 * 4096, 4
    # The new row is on the chip, so it is not read from memory.
    assert moved["write"] == row + number
    assert moved["read"] == 2 * row + number
    assert moved["copied"] == 2 * stack
    assert moved["a"] == moved["i"] == 0


TWO_STACKS = """\
HloModule two_stacks

%fused (a: f32[12,1024], b: f32[12,1024], number: s32[], part: f32[1,1024]) -> (f32[12,1024], f32[12,1024]) {
  %a = f32[12,1024]{1,0} parameter(0)
  %b = f32[12,1024]{1,0} parameter(1)
  %number = s32[] parameter(2)
  %part = f32[1,1024]{1,0} parameter(3)
  %zero = s32[] constant(0)
  %new_a = f32[12,1024]{1,0} dynamic-update-slice(%a, %part, %number, %zero)
  %new_b = f32[12,1024]{1,0} dynamic-update-slice(%b, %part, %number, %zero)
  ROOT %both = (f32[12,1024]{1,0}, f32[12,1024]{1,0}) tuple(%new_a, %new_b)
}

ENTRY %main (c: f32[12,1024], d: f32[12,1024], i: s32[], e: f32[1,1024]) -> (f32[12,1024], f32[12,1024]) {
  %c = f32[12,1024]{1,0} parameter(0)
  %d = f32[12,1024]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %e = f32[1,1024]{1,0} parameter(3)
  ROOT %write = (f32[12,1024]{1,0}, f32[12,1024]{1,0}) fusion(%c, %d, %i, %e), kind=kLoop, calls=%fused
}
"""


def test_a_fusion_that_replaces_rows_of_two_equal_stacks_writes_two_rows():
    program = Program.parse(TWO_STACKS)
    (moved,) = [
        memory_bytes(program, computation, instruction)
        for computation, instruction, _ in program.launched()
        if instruction.name == "write"
    ]
    assert moved == 3 * 4096 + 4, "two rows are written, one is read"


def test_a_fusion_that_a_gpu_runs_beside_others_moves_what_it_does_otherwise():
    write = "%write = f32[12,1024]{1,0} fusion(%a, %i, %b), kind"
    start = (
        "%start = ((f32[12,1024]{1,0}, s32[], f32[1,1024]{1,0}), f32[12,1024]{1,0}, u32[]) fusion-start(%a, %i, %b), "
    )
    done = "%write = f32[12,1024]{1,0} fusion-done(%start)"
    program = Program.parse(SLICED.replace(write, f"{start}kind").replace("  %read", f"  {done}\n  %read"))
    moved = {
        instruction.name: memory_bytes(program, computation, instruction)
        for computation, instruction, _ in program.launched()
    }
    assert moved["start"] == 4096 + 4
    assert moved["write"] == 0
    assert not moved.keys() & {"new", "row"}, "what is inside of a fusion moves nothing by itself"


def test_a_scan_moves_and_repeats_what_its_length_says(unoptimized):
    """A real compiled program: the weights of each layer are read once, whatever the length of the scan."""

    def loop(weights_LxDxD, x_D):
        return jax.lax.scan(lambda x_D, w_DxD: (jnp.tanh(w_DxD @ x_D), None), x_D, weights_LxDxD)[0]

    totals = []
    for length in (4, 8):
        shapes = jax.ShapeDtypeStruct((length, 256, 256), "float32"), jax.ShapeDtypeStruct((256,), "float32")
        program = Program.parse(jax.jit(loop).lower(*shapes).compile().as_text())
        bodies = [runs for name, runs in program.runs.items() if runs == length]
        assert bodies, "the body runs as often as there are layers"
        launched = program.launched()
        totals.append(sum(runs * memory_bytes(program, computation, each) for computation, each, runs in launched))
    per_layer = (totals[1] - totals[0]) / 4
    # A layer's weights are read from the stack, and at most written and read once more.
    assert 1 <= per_layer / (256 * 256 * 4) <= 3.1


GROUPS = {
    "explicit": ("{{0,1},{2,3}}, dimensions={0}", ((0, 1), (2, 3))),
    "pairs": ("{{0,1},{1,0}}, channel_id=1", ((0, 1), (1, 0))),
    "iota": ("[2,4]<=[8], use_global_device_ids=true", ((0, 1, 2, 3), (4, 5, 6, 7))),
    "transposed iota": ("[4,2]<=[2,4]T(1,0), to_apply=%add", ((0, 4), (1, 5), (2, 6), (3, 7))),
    "mesh": ("mesh['replica'=2,'fsdp'=2] {'replica'}, to_apply=%add", ((0, 2), (1, 3))),
    "mesh axes": ("mesh['replica'=2,'fsdp'=2] {'replica','fsdp'}, to_apply=%add", ((0, 1, 2, 3),)),
}


@pytest.mark.parametrize(("text", "groups"), GROUPS.values(), ids=GROUPS.keys())
def test_every_form_of_device_groups_is_read(text, groups):
    assert parse_groups(text) == groups


def test_other_forms_of_device_groups_are_refused():
    with pytest.raises(ValueError, match="not known"):
        parse_groups("@mesh {'replica':(1)2}")
