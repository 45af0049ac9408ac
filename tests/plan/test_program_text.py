"""Kernels, traffic and exchanges of programs written by hand, counted by hand."""

import pytest

from resnet_jax.plan import program_text
from resnet_jax.plan.program_text import Collective

HEAD = "HloModule jit_train, is_scheduled=true, num_partitions=8\n\n"


def entry(body: str) -> str:
    return HEAD + "ENTRY %main (a: f32[1024]) -> f32[1024] {\n  %a = f32[1024]{0} parameter(0)\n" + body + "\n}\n"


def test_kernels_read_operands_and_write_results() -> None:
    """4,096 bytes each: one read and one written; then two read and one written. The tuple is nothing."""
    found = program_text.read(
        entry("""  %b = f32[1024]{0} negate(%a)
  %c = f32[1024]{0} add(%a, %b)
  ROOT %t = (f32[1024]{0}) tuple(%c)""")
    )
    assert (found.kernels, found.bytes, found.by_kind(), found.sent) == (2, 5 * 4096, {}, 0)


def test_an_operand_given_twice_is_read_once() -> None:
    assert program_text.read(entry("  ROOT %b = f32[1024]{0} multiply(%a, %a)")).bytes == 2 * 4096


def test_what_lies_on_the_chip_is_no_traffic() -> None:
    """Fetched from memory (4,096), computed on the chip, written back (4,096)."""
    found = program_text.read(
        entry("""  %s = (f32[1024]{0:S(1)}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%a)
  %d = f32[1024]{0:S(1)} copy-done(%s)
  %b = f32[1024]{0:S(1)} negate(%d)
  ROOT %c = f32[1024]{0} negate(%b)""")
    )
    assert (found.kernels, found.bytes) == (3, 2 * 4096)


def test_a_slice_that_is_fetched_is_read_alone() -> None:
    found = program_text.read(
        entry("""  %s = ((f32[1024]{0}), f32[256]{0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:256]}
  ROOT %d = f32[256]{0:S(1)} slice-done(%s)""")
    )
    assert found.bytes == 1024


def test_a_fusion_reads_the_parts_that_it_looks_at() -> None:
    """One row of sixteen (256 bytes) of the first operand, all 256 of the second; 256 written."""
    text = """%fused (p: f32[16,64], q: f32[1,64], i: s32[]) -> f32[1,64] {
  %p = f32[16,64]{1,0} parameter(0)
  %q = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  %s = f32[1,64]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,64}
  ROOT %r = f32[1,64]{1,0} add(%s, %q)
}

ENTRY %main (x: f32[16,64], y: f32[1,64], n: s32[]) -> f32[1,64] {
  %x = f32[16,64]{1,0} parameter(0)
  %y = f32[1,64]{1,0} parameter(1)
  %n = s32[] parameter(2)
  ROOT %f = f32[1,64]{1,0} fusion(%x, %y, %n), kind=kLoop, calls=%fused
}
"""
    assert program_text.read(HEAD + text).bytes == 256 + 256 + 4 + 256


def test_an_update_in_place_moves_what_is_new() -> None:
    """Of 4,096 bytes, 256 are written, from 256 that are read; the index has 4."""
    text = """%fused (p: f32[16,64], q: f32[1,64], i: s32[]) -> f32[16,64] {
  %p = f32[16,64]{1,0} parameter(0)
  %q = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %r = f32[16,64]{1,0} dynamic-update-slice(%p, %q, %i, %z)
}

ENTRY %main (x: f32[16,64], y: f32[1,64], n: s32[]) -> f32[16,64] {
  %x = f32[16,64]{1,0} parameter(0)
  %y = f32[1,64]{1,0} parameter(1)
  %n = s32[] parameter(2)
  ROOT %f = f32[16,64]{1,0} fusion(%x, %y, %n), kind=kLoop, calls=%fused
}
"""
    assert program_text.read(HEAD + text).bytes == 256 + 256 + 4


LOOP = """%body (s: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %s = (s32[], f32[1024]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = f32[1024]{0} get-tuple-element(%s), index=1
  %w = f32[1024]{0} all-reduce(%v), replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %t = (s32[], f32[1024]{0}) tuple(%i, %w)
}

%condition (s: (s32[], f32[1024])) -> pred[] {
  %s = (s32[], f32[1024]{0}) parameter(0)
  ROOT %y = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %a = (s32[], f32[1024]{0}) parameter(0)
  ROOT %l = (s32[], f32[1024]{0}) while(%a), condition=%condition, body=%body%KNOWN%
}
"""


def test_a_loop_counts_as_often_as_it_runs() -> None:
    """Nine passes, in each an all-reduce of 4,096 bytes among four: 2 * 3/4 of them are sent."""
    known = ', backend_config={"known_trip_count":{"n":"9"}}'
    found = program_text.read(HEAD + LOOP.replace("%KNOWN%", known))
    assert (found.kernels, found.bytes, found.unknown_loops) == (9, 9 * 2 * 4096, 0)
    assert found.by_kind() == {"all-reduce": {"count": 9, "bytes": 9 * 4096}}
    assert found.sent == 9 * 1.5 * 4096


def test_a_loop_without_a_known_end_is_said() -> None:
    found = program_text.read(HEAD + LOOP.replace("%KNOWN%", ""))
    assert (found.kernels, found.unknown_loops) == (1, 1)


def test_exchanges_that_run_beside_the_rest_count_once() -> None:
    """Eight devices with 512 bytes each: all have 4,096 in the end, and send 7/8 of them."""
    found = program_text.read(
        entry("""  %p = f32[128]{0} slice(%a), slice={[0:128]}
  %s = (f32[128]{0}, f32[1024]{0}) all-gather-start(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %d = f32[1024]{0} all-gather-done(%s)""")
    )
    assert found.by_kind() == {"all-gather": {"count": 1, "bytes": 4096}}
    assert found.sent == 7 / 8 * 4096
    # The slice: 512 read, 512 written. The exchange: 512 read, 4,096 written.
    assert found.bytes == 2 * 512 + 512 + 4096


def test_a_wrapped_exchange_is_found() -> None:
    text = """%wrapped (p: f32[1024]) -> f32[128] {
  %p = f32[1024]{0} parameter(0)
  ROOT %r = f32[128]{0} reduce-scatter(%p), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%sum
}

ENTRY %main (a: f32[1024]) -> f32[128] {
  %a = f32[1024]{0} parameter(0)
  %s = ((f32[1024]{0}), f32[128]{0}) async-start(%a), calls=%wrapped
  ROOT %d = f32[128]{0} async-done(%s)
}
"""
    found = program_text.read(HEAD + text)
    assert found.by_kind() == {"reduce-scatter": {"count": 1, "bytes": 4096}}
    assert found.sent == 7 / 8 * 4096


def test_an_exchange_with_oneself_is_none() -> None:
    assert program_text.read(entry("  ROOT %b = f32[1024]{0} all-reduce(%a), replica_groups=[8,1]<=[8], to_apply=%sum")).by_kind() == {}


@pytest.mark.parametrize(
    ("kind", "sent"), [("all-reduce", 1500.0), ("all-gather", 750.0), ("reduce-scatter", 750.0), ("collective-permute", 1000.0)]
)
def test_what_a_ring_of_four_sends(kind: str, sent: float) -> None:
    assert Collective(kind, 1000, 4).sent == sent


def test_the_costlier_branch_counts() -> None:
    text = """%cheap (p: f32[1024]) -> f32[1024] {
  ROOT %p = f32[1024]{0} parameter(0)
}

%dear (p: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0} parameter(0)
  ROOT %n = f32[1024]{0} negate(%p)
}

ENTRY %main (b: pred[], a: f32[1024]) -> f32[1024] {
  %b = pred[] parameter(0)
  %a = f32[1024]{0} parameter(1)
  ROOT %c = f32[1024]{0} conditional(%b, %a, %a), true_computation=%cheap, false_computation=%dear
}
"""
    assert program_text.read(HEAD + text).bytes == 2 * 4096
