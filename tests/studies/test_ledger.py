"""The ledger against papers.md: number of entries, spot checks, protocols, networks; invalid files."""

import dataclasses
import functools
from collections import Counter
from pathlib import Path

import pytest
from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models import NETWORKS
from resnet_jax.models.shortcuts import Scaled
from resnet_jax.studies import ledger
from resnet_jax.studies.ledger import Entry
from synthetic_runs import TABLE6, experiment, result

# Verified (V, C) and unverified (M) numbers, counted in papers.md.
COUNTS = {
    "bachlechner2020": (1, 7),
    "de2020": (0, 1),
    "fb_resnet_torch": (12, 0),
    "goyal2017": (0, 2),
    "he2015": (186, 4),
    "he2016": (76, 0),
    "he2018": (2, 15),
    "hu2018": (21, 28),
    "huang2016": (21, 0),
    "huang2017": (38, 0),
    "kolesnikov2020": (2, 0),
    "reruns": (42, 0),
    "torchvision": (29, 0),
    "veit2016": (4, 0),
    "wightman2021": (19, 3),
    "xie2017": (46, 1),
    "zagoruyko2016": (70, 2),
    "zhang2019": (0, 12),
}
# Read in papers.md: paper, table, row, metric, statistic, mark, text of the number.
SPOTS = """
he2015 | Table 1 | ResNet-50 | flops | single | V:S1 | 3,800,000,000
he2015 | Table 5 | ResNet | top5_error | ensemble | V:S1 | 3.57
he2015 | Table 6 | ResNet-110 | top1_error | best | V:S1 | 6.43
he2015 | Table 6 | ResNet-110, mean of 5 | top1_error | mean | V:S1 | 6.61 ± 0.16
he2015 | Table 6, exact counts | ResNet-1202 | parameters | exact | C | 19,421,274
he2015 | Figure 6 | ResNet-1202 | training_error | single | V:S1 | < 0.1
he2015 | Table 14 | ResNet | localisation_error | single | M | 9
he2016 | Table 1 | dropout shortcut | top1_error | median | V:S3 | fail (> 20)
he2016 | Table 2 | 164, full pre-activation | top1_error | median | V:S3 | 5.46
zagoruyko2016 | Wide networks, CIFAR-100, ZCA | WRN-28-10 | top1_error | median | V:S4 | 20.5
xie2017 | Table 3, FLOPs | 50-layer | flops | single | V:S5 | ~ 4,100,000,000
huang2016 | CIFAR-10+ | stochastic depth | top1_error | val-selected | V:S6 | 5.25
huang2017 | Exact counts | L = 100, k = 12 | parameters | exact | C | 6,979,642
veit2016 | Path lengths | paths through 5 to 17 modules | paths_percent | single | V:S8 | 0.45
wightman2021 | A1 | ResNet-50 | top1_accuracy | single | V:S11 | 80.382
reruns | akamaster/pytorch_resnet_cifar10 | ResNet-20 | top1_error | test-selected | V:S16 | 8.27
"""


def entries() -> list[Entry]:
    return [entry for key in COUNTS for entry in ledger.load(key).entries]


def test_numbers_equal_papers_md() -> None:
    assert ledger.papers() == sorted(COUNTS)
    for key, expected in COUNTS.items():
        paper = ledger.load(key)
        verified = Counter(entry.verified for entry in paper.entries)
        assert (verified[True], verified[False]) == expected, key
        assert all((paper.title, paper.authors, paper.source))
    ours = {(e.paper, e.table, e.row, e.metric): e for e in entries()}
    assert len(ours) == len(entries()), "one place has one number"
    for line in SPOTS.strip().splitlines():
        *place, statistic, mark, number = line.split(" | ")
        entry = ours[tuple(place)]  # pyright: ignore[reportArgumentType]
        assert (entry.statistic, entry.mark, str(entry), entry.verified) == (statistic, mark, number, mark != "M"), line
    assert ours["he2015", "Table 6", "ResNet-110", "top1_error"].runs == 5
    failed = ["constant scaling 0, 1", "constant scaling 0.5, 1", "exclusive gating, bias 0 to -5", "dropout shortcut"]
    assert [entry.row for entry in entries() if entry.failed] == failed
    statistics = {"single", "best", "mean", "median", "val-selected", "test-selected", "ensemble", "exact"}
    marks = {"V", "C", "M", "M-", *(f"V:S{n}" for n in range(1, 18))}
    # Other names would match no result.
    fields = result(experiment("resnet20", 20), 0, 8.0)["protocol"].keys()
    for entry in entries():
        assert all((entry.table.strip(), entry.row.strip(), 0 < entry.value < float("inf"))), entry
        assert (entry.mark in marks, entry.statistic in statistics, entry.relation in "=><~") == (True, True, True), entry
        assert (entry.mark == "C") <= (entry.statistic == "exact"), "counts are not statistics of runs"
        assert entry.protocol.keys() <= fields, entry


def test_protocols_are_those_of_the_papers() -> None:
    """papers.md A1, A5: 64k iterations of 128 on two GPUs; 45k or 50k images is not stated."""
    (resnet20,) = (e for e in ledger.load("he2015").entries if (e.table, e.row) == ("Table 6", "ResNet-20"))
    assert resnet20.protocol == TABLE6
    huang = {(e.table, e.row): e.protocol for e in ledger.load("huang2016").entries}
    stated = {"training_images": 45_000, "validation_images": 5000, "selection": "validation error", "steps": 500 * 352}
    assert stated.items() <= huang["CIFAR-10+", "constant depth"].items()
    assert huang["CIFAR-10+, 1202 layers", "stochastic depth"]["steps"] == 300 * 352


def test_networks_are_built_with_the_classes_of_their_data_set() -> None:
    he2016 = {(e.table, e.row): e.architecture() for e in ledger.load("he2016").entries}
    scaled = dataclasses.replace(NETWORKS["cifar_resnet110"], shortcut=models.component(Scaled, shortcut=0.5, branch=0.5))
    assert he2016["Table 1", "constant scaling 0.5, 0.5"] == scaled
    for entry in entries():
        classes = {"cifar10": 10, "cifar100": 100}.get(entry.protocol.get("dataset", ""))
        if classes and (architecture := entry.architecture()):
            assert architecture.num_classes == classes, entry
    # Table 3 of He et al. 2016: 5.46 and 24.33 are of the pre-activated ResNet-164, also where others quote them.
    preactivated = {e.architecture() for e in ledger.load("he2016").entries if e.value in (5.46, 24.33)}
    quoted = {e.architecture() for e in ledger.load("hu2018").entries if e.value in (5.46, 24.33) and e.row == "ResNet-164"}
    assert quoted <= preactivated | {None}


@pytest.mark.slow
def test_networks_have_exactly_the_computed_counts() -> None:
    """Counts with mark C, to the digits printed, of networks up to 30 blocks; 108 in all, added up by hand in papers.md."""
    metrics = ("parameters", "multiply_adds", "projections")
    counted = [entry for entry in entries() if entry.network and entry.mark == "C" and entry.metric in metrics]
    count = functools.cache(models.count)
    assert len(counted) == 108
    shallow = [(entry, architecture) for entry in counted if (architecture := entry.architecture()) and sum(architecture.stages) <= 30]
    assert len(shallow) > 50
    for entry, architecture in shallow:
        ours = getattr(count(architecture), entry.metric)
        rounded = ours if entry.digits is None else float(f"{ours:.{entry.digits - 1}e}")
        assert rounded == entry.value, entry


HEAD = """
[paper]
key = "made"
title = "Synthetic"
authors = "Nobody"
source = "nowhere"

[[table]]
name = "Table 9"
statistic = "single"
mark = "V:S1"
"""


def test_load_rejects_misspelled_fields_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_FOLDER", tmp_path)
    monkeypatch.setattr(ledger, "load", ledger.load.__wrapped__)

    def load(rows: str) -> tuple[Entry, ...]:
        (tmp_path / "made.toml").write_text(f"{HEAD}rows = [{{ {rows} }}]\n")
        return ledger.load("made").entries

    (first, second) = load('row = "a", mark = "M", top1_error = { value = "> 60", mark = "C", statistic = "best" }, top5_error = 1')
    assert (first.mark, first.statistic, str(first)) == ("C", "best", "> 60"), "a number wins over its row, a row over its table"
    assert (second.mark, second.statistic, second.verified) == ("M", "single", False)
    for rows, message in (
        ('row = "a", top1_eror = 5', "made.toml, Table 9, a has no metric"),
        ('row = "a", top1_error = { value = 6.61, sprad = 0.16 }', "unexpected keyword argument 'sprad'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            load(rows)
    with pytest.raises(UserError, match="the ledger has no paper 'mode'; did you mean made"):
        ledger.load("mode")
