"""Kernels by kind and source line, of programs written by hand."""

from resnet_jax.plan import costs

TABLES = """HloModule jit_train, is_scheduled=true

FileNames
1 "/somewhere/main.py"
2 "/somewhere/resnet_jax/models/norms.py"
3 "/elsewhere/site-packages/optax/update.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=88 end_line=88 column=1 end_column=2}
3 {file_name_id=3 function_name_id=1 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=3 parent_frame_id=2}

%fused (p: bf16[8,4,4,16]) -> f32[16] {
  %p = bf16[8,4,4,16]{3,2,1,0} parameter(0)
  %c = f32[8,4,4,16]{3,2,1,0} convert(%p), metadata={op_name="jit(train)/jvp(stage1)/x" stack_frame_id=2}
  %z = f32[] constant(0)
  ROOT %r = f32[16]{0} reduce(%c, %z), dimensions={0,1,2}, to_apply=%add, metadata={op_name="jit(train)/jvp(stage1)/x" stack_frame_id=2}
}

ENTRY %main (a: bf16[8,4,4,16], k: bf16[3,3,16,16]) -> f32[8,4,4,16] {
  %a = bf16[8,4,4,16]{3,2,1,0} parameter(0)
  %k = bf16[3,3,16,16]{3,2,1,0} parameter(1)
  %y = (bf16[8,4,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%a, %k), custom_call_target="__cudnn$convForward", metadata={stack_frame_id=1}
  %g = bf16[8,4,4,16]{3,2,1,0} get-tuple-element(%y), index=0
  %s = f32[16]{0} fusion(%g), kind=kInput, calls=%fused
  %u = f32[16]{0} negate(%s), metadata={op_name="jit(train)/transpose(jvp(stage1))/neg" stack_frame_id=3}
  %w = f32[16]{0} negate(%u), metadata={op_name="jit(train)/neg" stack_frame_id=4}
  ROOT %o = f32[8,4,4,16]{3,2,1,0} convert(%g)
}
"""


def test_kernels_have_kinds_lines_directions_and_bytes() -> None:
    """An activation is 8 x 4 x 4 x 16 values: 4,096 bytes in bf16, 8,192 in f32; a kernel 4,608, a vector of 16 64."""
    found = costs.kernels(TABLES, 8)
    assert [(each.kind, each.line, each.scope, each.backward) for each in found] == [
        ("convolution", "/somewhere/main.py:7", "", False),
        ("reduction", "models/norms.py:88", "stage1", False),
        ("elementwise", "models/norms.py:88", "stage1", True),  # optax was called from there
        ("elementwise", "optax/update.py:9", "", False),
        ("copy or cast", "?", "", False),
    ]
    assert [each.bytes for each in found] == [4096 + 4608 + 4096, 4096 + 64, 128, 128, 4096 + 8192]
    assert [each.float32_activations for each in found] == [0, 0, 0, 0, 1]


def test_sums_are_by_image_and_the_dearest_first() -> None:
    found = costs.summary(costs.kernels(TABLES, 8), 8)
    assert (found["kernels"], found["float32_activations"]) == (5, 1)
    assert found["bytes_per_image"] == (12800 + 4160 + 256 + 12288) / 8
    assert [row["kind"] for row in found["by_kind"]] == ["convolution", "copy or cast", "reduction", "elementwise"]


def test_bodies_of_loops_count_as_often_as_they_run() -> None:
    text = """HloModule m

%body (p: f32[16]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  ROOT %n = f32[16]{0} negate(%p), metadata={op_name="x" source_file="/a/resnet_jax/models/layers.py" source_line=5}
}

%condition (p: f32[16]) -> pred[] {
  %p = f32[16]{0} parameter(0)
  ROOT %t = pred[] constant(true)
}

ENTRY %main (a: f32[16]) -> f32[16] {
  %a = f32[16]{0} parameter(0)
  ROOT %w = f32[16]{0} while(%a), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}
}
"""
    (found,) = costs.kernels(text, 8)
    assert (found.times, found.line, found.bytes) == (7, "models/layers.py:5", 128)
    assert costs.summary([found], 8)["kernels"] == 7
    of_a_step = costs.summary([found], 8, steps=7)
    assert (of_a_step["kernels"], of_a_step["bytes_per_image"]) == (1, 128 / 8)


def test_a_filters_gradient_and_images_are_no_activations() -> None:
    from resnet_jax.plan.instructions import shapes

    counted = [
        costs._float32_activation(shape, 128) for shape in shapes("f32[128,3,3,64], f32[128,32,32,3], bf16[128,8,8,64], f32[128,8,8,64]")
    ]
    assert counted == [False, False, False, True]
