"""A plan as a table, with what its numbers are and are not."""

from typing import Any

from rich.table import Table

from resnet_jax.plan import targets

GB = 1e9


def table(found: dict[str, Any]) -> Table:
    """The rows of a plan."""
    made = Table(title=f"one training step of {found['experiment']}, compiled and not run", padding=(0, 0))
    for heading in COLUMNS:
        made.add_column(heading, justify="left" if heading in ("target", "layout", "limited by") else "right")
    for row in found["rows"]:
        made.add_row(*cells(row))
    return made


def lines(found: dict[str, Any], images_per_second: float | None = None) -> list[str]:
    """What does not fit into the table: kernels, kinds of exchanges, the largest batches, the devices, what is assumed."""
    rows = found["rows"]
    said = [line for row in rows for line in _of_row(row, images_per_second)]
    for name in dict.fromkeys(row["target"] for row in rows):
        device = targets.parse(name).device
        rates = ", ".join(f"{rate / 1e12:,.0f} TFLOPS {dtype}" for dtype, rate in device.matrix_rates)
        said.append(
            f"{name}: {device.usable / GB:.1f} of {device.memory / GB:.1f} GB for a program, {device.bandwidth / GB:,.0f} GB/s, {rates}, "
            f"{device.link / GB:,.0f} GB/s out. {device.source}."
        )
    return [*said, ASSUMED]


ASSUMED = (
    "Bounds (<), not times: every rate at its published peak, computing hidden behind moving. Efficiency is images a second of a chip over "
    "those of one alone, both at their bounds: where nothing of the exchanges is hidden, and where all is. What a GPU finds "
    "in its cache is counted as moved: there the memory's bound is near, and not strict."
)
COLUMNS = (
    *("target", "layout", "BN over", "images", "GB", "fits", "exchanges", "MB sent"),
    *("MB/image", "GFLOP/image", "images/s <", "limited by", "efficiency <"),
)


def cells(row: dict[str, Any]) -> list[str]:
    """Of a row, one for each column: images and GB of a chip, exchanges and what they send in a step."""
    first = [
        row["target"],
        row["layout"] if row["fsdp"] == 1 else f"fsdp {row['fsdp']}",
        {None: "no batch", 0: "all"}.get(row["group_size"], str(row["group_size"])),
        str(row["batch_per_device"]),
        f"{row['memory_bytes'] / GB:.2f}" if row["memory_bytes"] else "",
        "yes" if row["fits"] else "no",
    ]
    if "bound" not in row:
        return first + [""] * (len(COLUMNS) - len(first))
    bound, kinds = row["bound"], row["collectives"].values()
    return [
        *first,
        str(sum(kind["count"] for kind in kinds)),
        f"{row['sent_bytes'] / 1e6:,.1f}",
        f"{row['bytes_per_image'] / 1e6:,.0f}",
        f"{row['flops_per_image'] / 1e9:,.1f}",
        f"{bound['images_per_second']:,.0f}",
        bound["limited_by"],
        f"{100 * bound['efficiency_exposed']:.1f}-{100 * bound['efficiency_hidden']:.1f} %",
    ]


def _of_row(row: dict[str, Any], images_per_second: float | None) -> list[str]:
    name = " ".join(cells(row)[:2]) + f", BatchNorm over {cells(row)[2]}"
    found = []
    if "refusal" in row:
        found.append(f"{name}: {row['refusal']}")
    if "bound" in row:
        shares = ", ".join(f"{100 * share:.0f} % of the {of}'s rate" for of, share in row["bound"]["shares"].items())
        kinds = (
            ", ".join(f"{kind['count']} {of} of {kind['bytes'] / 1e6:,.1f} MB" for of, kind in row["collectives"].items()) or "no exchange"
        )
        found.append(f"{name}: {row['kernels']} kernels; {kinds}; at the bound {shares}")
        if row["unknown_loops"]:
            found.append(f"{name}: {row['unknown_loops']} loops have no known number of passes, and are counted once")
        if images_per_second is not None:
            share = images_per_second / row["bound"]["images_per_second"]
            found.append(f"{name}: {images_per_second:,.0f} images/s would need {100 * share:.1f} % of the bound")
    if "largest" in row:
        sizes = row["largest"]["compiled"].items()
        tried = ", ".join(f"{batch}: {'refused' if bytes_ is None else f'{bytes_ / GB:.2f} GB'}" for batch, bytes_ in sizes)
        batch = row["largest"]["batch_per_device"]
        found.append(f"{name}: the largest batch that was seen to fit has {batch} images a chip, {batch * row['chips']:,} in all ({tried})")
    return found
