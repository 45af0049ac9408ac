"""The lines of a compiled program, as XLA's backends write them."""

import pytest

from resnet_jax.plan import instructions
from resnet_jax.plan.instructions import Instruction, Shape


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 3 x 5 values of 4 bytes.
        ("f32[3,5]{1,0}", Shape(60, 60, True)),
        ("s32[]", Shape(4, 4, True)),
        ("pred[7]{0}", Shape(7, 7, True)),
        ("s4[3]{0}", Shape(2, 2, True)),
        ("f8e4m3fn[6]{0}", Shape(6, 6, True)),
        # 64 channels lie as 128 behind each of 56 pixels: twice the bytes.
        ("bf16[32,56,56,64]{3,2,1,0:T(8,128)(2,1)}", Shape(32 * 56 * 56 * 64 * 2, 32 * 56 * 56 * 128 * 2, True)),
        # Minor is the images' axis here, of 32; then the 64 channels.
        ("bf16[32,56,56,64]{0,3,2,1:T(8,128)(2,1)S(1)}", Shape(32 * 56 * 56 * 64 * 2, 128 * 56 * 56 * 64 * 2, False)),
        # 10 values in tiles of 128.
        ("f32[10]{0:T(128)}", Shape(40, 512, True)),
        ("u32[]{:S(2)}", Shape(4, 4, False)),
        ("s32[]{:T(128)}", Shape(4, 512, True)),
    ],
)
def test_sizes_follow_the_layout(text: str, expected: Shape) -> None:
    assert instructions.shapes(text) == (expected,)


def test_a_line_is_taken_apart() -> None:
    text = """ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0), metadata={op_name="jit(f)/x = (y)"}
  ROOT %all-reduce.1 = (f32[8]{0}, /*index=1*/f32[2]{0}) all-reduce(%p, /*index=1*/%q.2), replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""
    found = instructions.computations(text)["ENTRY"]
    assert found["p"].number == 0
    assert found["all-reduce.1"] == Instruction(
        name="all-reduce.1",
        opcode="all-reduce",
        shapes=(Shape(32, 32, True), Shape(8, 8, True)),
        operands=("p", "q.2"),
        number=-1,
        rest=", replica_groups={{0,1},{2,3}}, to_apply=%add",
        root=True,
    )
    assert found["all-reduce.1"].called("to_apply") == ["add"]


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['seed'=1,'data'=4,'fsdp'=2] {'data'}", 4),
        ("replica_groups=mesh['seed'=1,'data'=4,'fsdp'=2] {'data','fsdp'}", 8),
        ("replica_groups=mesh['data'=8] {'data':(2)4}", 4),
        ("replica_groups={}", 8),
        ("channel_id=1", 8),
    ],
)
def test_who_takes_part_in_an_exchange(groups: str, devices: int) -> None:
    assert Instruction("a", "all-reduce", (), (), -1, f", {groups}, to_apply=%add", False).devices(8) == devices


def test_branches_of_a_conditional() -> None:
    several = Instruction("c", "conditional", (), (), -1, ", branch_computations={%one, %two.1}", False)
    two = Instruction("c", "conditional", (), (), -1, ", true_computation=%yes, false_computation=%no", False)
    assert (several.branches(), two.branches()) == (["one", "two.1"], ["yes", "no"])


def test_an_open_bracket_is_an_error() -> None:
    with pytest.raises(ValueError, match="not closed"):
        instructions.computations("  %a = f32[] add(%b, %c")
