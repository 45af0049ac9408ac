"""A plan as it is printed."""

from typing import Any

from rich.console import Console

from resnet_jax.plan import printed

ROW: dict[str, Any] = {
    "target": "tpu:v5e:4x4",
    "chips": 16,
    "layout": "data",
    "fsdp": 1,
    "group_size": 32,
    "batch_per_device": 32,
    "fits": True,
    "memory_bytes": 4_560_000_000,
    "kernels": 1234,
    "unknown_loops": 0,
    "bytes_per_image": 383_400_000.0,
    "flops_per_image": 23_460_000_000.0,
    "collectives": {"all-reduce": {"count": 3, "bytes": 55_500_000}},
    "sent_bytes": 104_100_000.0,
    "bound": {
        "images_per_second": 34_567.8,
        "limited_by": "memory",
        "shares": {"memory": 1.0, "matrix": 0.234, "link": 0.056},
        "efficiency_hidden": 1.0,
        "efficiency_exposed": 0.9512,
    },
    "largest": {"batch_per_device": 96, "predicted": 99, "compiled": {"32": 4_560_000_000, "96": 15_000_000_000, "128": None}},
}
REFUSED = {name: ROW[name] for name in ("target", "chips", "layout", "batch_per_device")}
REFUSED |= {"fsdp": 8, "group_size": 0, "fits": False, "memory_bytes": 0, "refusal": "RESOURCE_EXHAUSTED: too much"}
FOUND = {"experiment": "resnet50", "rows": [ROW, REFUSED]}


def test_a_row_in_cells() -> None:
    assert dict(zip(printed.COLUMNS, printed.cells(ROW), strict=True)) == {
        "target": "tpu:v5e:4x4",
        "layout": "data",
        "BN over": "32",
        "images": "32",
        "GB": "4.56",
        "fits": "yes",
        "exchanges": "3",
        "MB sent": "104.1",
        "MB/image": "383",
        "GFLOP/image": "23.5",
        "images/s <": "34,568",
        "limited by": "memory",
        "efficiency <": "95.1-100.0 %",
    }


def test_what_was_refused_has_no_numbers() -> None:
    assert printed.cells(REFUSED) == ["tpu:v5e:4x4", "fsdp 8", "all", "32", "", "no"] + [""] * 7


def test_no_cell_is_cut_at_the_width_of_a_pipe() -> None:
    console = Console(width=140, record=True)
    console.print(printed.table(FOUND))
    text = console.export_text()
    assert "…" not in text
    assert all(cell in text for cell in printed.cells(ROW))


def test_the_lines_say_what_the_numbers_rest_on() -> None:
    text = "\n".join(printed.lines(FOUND, images_per_second=3456.78))
    assert "1234 kernels; 3 all-reduce of 55.5 MB; at the bound 100 % of the memory's rate, 23 % of the matrix's rate" in text
    assert "3,457 images/s would need 10.0 % of the bound" in text
    assert "96 images a chip, 1,536 in all (32: 4.56 GB, 96: 15.00 GB, 128: refused)" in text
    assert "fsdp 8, BatchNorm over all: RESOURCE_EXHAUSTED: too much" in text
    assert "Cloud TPU documentation" in text
    assert text.endswith(printed.ASSUMED)
    assert printed.ASSUMED.startswith("Bounds (<), not times")


def test_loops_that_are_counted_once_are_said() -> None:
    rows = [ROW | {"unknown_loops": 2, "collectives": {}}]
    text = "\n".join(printed.lines(FOUND | {"rows": rows}))
    assert "2 loops have no known number of passes" in text
    assert "no exchange" in text
