"""The ledger against papers.md: how many numbers, which, what they mean; and what becomes of a file that does not keep to the form."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from resnet_jax import models, references
from resnet_jax.errors import UserError
from resnet_jax.models import NETWORKS, Architecture, cifar_architecture
from resnet_jax.models.shortcuts import Scaled
from resnet_jax.studies import comparison, ledger
from resnet_jax.studies.ledger import Entry
from resnet_jax.training import resolved

# Verified (V, C) and unverified (M), counted in papers.md.
SPLIT = {
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

# Typed from papers.md: table, row, metric, value, statistic, mark. Errors are top-1 in percent unless the metric says otherwise.
GOLDEN: dict[str, list[tuple[str, str, str, float, str, str]]] = {
    "he2015": [
        ("Table 1", "ResNet-50", "flops", 3.8e9, "single", "V:S1"),
        ("Table 1", "VGG-19", "flops", 19.6e9, "single", "V:S1"),
        ("Table 1, multiply-adds", "ResNet-50", "multiply_adds", 3.8580e9, "exact", "C"),
        ("Table 1, multiply-adds", "ResNet-152, stride in the 3x3", "multiply_adds", 11.5136e9, "exact", "C"),
        ("Table 1, parameters", "ResNet-34 (C)", "parameters", 22_716_840, "exact", "C"),
        ("Projections of ResNet-34", "ResNet-34 (C)", "projections", 16, "exact", "C"),
        ("Projections of ResNet-34", "ResNet-34 (C), beyond those of B", "projections", 13, "exact", "V:S1"),
        ("Table 2", "plain-18", "top1_error", 27.94, "single", "V:S1"),
        ("Table 2", "ResNet-18", "top1_error", 27.88, "single", "V:S1"),
        ("Table 2", "plain-34", "top1_error", 28.54, "single", "V:S1"),
        ("Table 2", "ResNet-34", "top1_error", 25.03, "single", "V:S1"),
        ("Table 3", "VGG-16", "top5_error", 9.33, "single", "V:S1"),
        ("Table 3", "ResNet-34 B", "top1_error", 24.52, "single", "V:S1"),
        ("Table 3", "ResNet-34 C", "top5_error", 7.40, "single", "V:S1"),
        ("Table 3", "ResNet-152", "top1_error", 21.43, "single", "V:S1"),
        ("1-crop errors", "ResNet-50", "top1_error", 24.7, "single", "V:S9"),
        ("1-crop errors", "ResNet-152", "top5_error", 6.7, "single", "V:S9"),
        ("Table 4", "VGG", "top5_error", 8.43, "single", "V:S1"),
        ("Table 4", "ResNet-152", "top1_error", 19.38, "single", "V:S1"),
        ("Table 5", "ResNet", "top5_error", 3.57, "ensemble", "V:S1"),
        ("Table 6", "ResNet-20", "top1_error", 8.75, "single", "V:S1"),
        ("Table 6", "ResNet-32", "top1_error", 7.51, "single", "V:S1"),
        ("Table 6", "ResNet-44", "top1_error", 7.17, "single", "V:S1"),
        ("Table 6", "ResNet-56", "top1_error", 6.97, "single", "V:S1"),
        ("Table 6", "ResNet-110", "top1_error", 6.43, "best", "V:S1"),
        ("Table 6", "ResNet-110, mean of 5", "top1_error", 6.61, "mean", "V:S1"),
        ("Table 6", "ResNet-1202", "top1_error", 7.93, "single", "V:S1"),
        ("Table 6", "Maxout", "top1_error", 9.38, "single", "V:S1"),
        ("Table 6, parameters", "ResNet-1202", "parameters", 19.4e6, "single", "V:S1"),
        ("Table 6, parameters", "Highway-32", "parameters", 1.25e6, "single", "V:S1"),
        ("Table 6, exact counts", "ResNet-110 (B)", "parameters", 1_730_714, "exact", "C"),
        ("Table 6, exact counts", "plain-1202", "multiply_adds", 2829.24e6, "exact", "C"),
        ("Table 7", "ResNet-101, VOC 2012 test", "map", 73.8, "single", "V:S1"),
        ("Table 8", "ResNet-101", "map_coco", 27.2, "single", "V:S1"),
        ("Table 9", "ensemble of 3", "map", 59.0, "ensemble", "V:S1"),
        ("Tables 10 and 11", "baseline+++, VOC 2012", "map", 83.8, "single", "V:S1"),
        ("Table 12", "ensemble, test", "map", 62.1, "ensemble", "V:S1"),
        ("Table 13", "RPN and R-CNN, class predicted", "localisation_error", 10.6, "single", "V:S1"),
        ("Table 14", "ResNet", "localisation_error", 9.0, "single", "M"),
        ("Cost of one run", "ResNet-1202", "petaflop", 139, "exact", "C"),
    ],
    "he2016": [
        ("Table 1", "original", "top1_error", 6.61, "median", "V:S3"),
        ("Table 1", "constant scaling 0.5, 0.5", "top1_error", 12.35, "median", "V:S3"),
        ("Table 1", "exclusive gating, bias -6", "top1_error", 8.70, "median", "V:S3"),
        ("Table 1", "exclusive gating, bias -7", "top1_error", 9.81, "median", "V:S3"),
        ("Table 1", "shortcut-only gating, bias 0", "top1_error", 12.86, "median", "V:S3"),
        ("Table 1", "shortcut-only gating, bias -6", "top1_error", 6.91, "median", "V:S3"),
        ("Table 1", "1x1 conv shortcut", "top1_error", 12.22, "median", "V:S3"),
        ("Table 2", "110, BN after addition", "top1_error", 8.17, "median", "V:S3"),
        ("Table 2", "110, ReLU before addition", "top1_error", 7.84, "median", "V:S3"),
        ("Table 2", "164, ReLU-only pre-activation", "top1_error", 5.91, "median", "V:S3"),
        ("Table 2", "164, full pre-activation", "top1_error", 5.46, "median", "V:S3"),
        ("Table 3, CIFAR-10", "110, 1-layer skip, baseline", "top1_error", 9.90, "median", "V:S3"),
        ("Table 3, CIFAR-10", "110, 1-layer skip, pre-activation", "top1_error", 8.91, "median", "V:S3"),
        ("Table 3, CIFAR-10", "1001, baseline", "top1_error", 7.61, "median", "V:S3"),
        ("Table 3, CIFAR-100", "1001, baseline", "top1_error", 27.82, "median", "V:S3"),
        ("Table 3, CIFAR-100", "1001, pre-activation", "top1_error", 22.71, "median", "V:S3"),
        ("Table 4, CIFAR-10", "ResNet-1001, mean of 5", "top1_error", 4.89, "mean", "V:S3"),
        ("Table 4, CIFAR-10", "ResNet-1001, batch of 64", "top1_error", 4.62, "median", "V:S3"),
        ("Table 4, CIFAR-10", "ResNet-1001", "parameters", 10.2e6, "median", "V:S3"),
        ("Table 4, CIFAR-100", "ResNet-1001, mean of 5", "top1_error", 22.68, "mean", "V:S3"),
        ("Table 5", "ResNet-152, original, 224", "top1_error", 23.0, "single", "V:S3"),
        ("Table 5", "ResNet-200, pre-activation, 320", "top1_error", 20.7, "single", "V:S3"),
        ("Table 5", "ResNet-200, pre-activation, aspect ratio, 320", "top5_error", 4.8, "single", "V:S3"),
        ("BN after addition on ImageNet", "BN after addition", "top1_error", 24.6, "single", "V:S3"),
        ("Exact counts", "Pre-1001", "parameters", 10_327_706, "exact", "C"),
        ("Exact counts", "110, 1x1 conv shortcut on all units", "parameters", 1_826_202, "exact", "C"),
        ("Time of one run", "ResNet-1001", "hours", 27, "single", "V:S3"),
    ],
    "zagoruyko2016": [
        ("Wide networks, CIFAR-10, ZCA", "WRN-28-10", "top1_error", 4.17, "median", "V:S4"),
        ("Wide networks, CIFAR-100, ZCA", "WRN-28-10", "top1_error", 20.50, "median", "V:S4"),
        ("Wide networks, CIFAR-10, ZCA", "WRN-40-8", "top1_error", 4.66, "median", "V:S4"),
        ("Wide networks, CIFAR-100, ZCA", "WRN-40-1", "top1_error", 30.89, "median", "V:S4"),
        ("Wide networks, CIFAR-10, mean and standard deviation", "WRN-28-10", "top1_error", 4.00, "median", "V:S4"),
        ("Wide networks, CIFAR-100, mean and standard deviation", "WRN-28-10, dropout", "top1_error", 18.85, "median", "V:S4"),
        ("Wide networks, CIFAR-10, mean and standard deviation", "WRN-40-10, dropout", "top1_error", 3.8, "single", "V:S4"),
        ("Wide networks, SVHN", "WRN-16-4, dropout", "top1_error", 1.64, "median", "V:S4"),
        ("Wide networks, SVHN", "WRN-16-8, dropout", "top1_error", 1.54, "single", "V:S4"),
        ("Block types", "B(3,3)", "top1_error", 5.73, "median", "V:S4"),
        ("Block types", "B(1,3,1)", "top1_error", 6.06, "median", "V:S4"),
        ("Deepening", "l = 1", "top1_error", 6.69, "median", "V:S4"),
        ("Deepening", "l = 4", "top1_error", 5.93, "median", "V:S4"),
        ("ImageNet", "WRN-50-2, repository", "top5_error", 5.79, "single", "V:S4"),
        ("ImageNet", "WRN-50-2, paper", "top5_error", 6.03, "single", "M"),
        ("Exact counts", "WRN-28-10", "parameters", 36_479_194, "exact", "C"),
        ("Exact counts", "WRN-28-10, 100 classes", "parameters", 36_536_884, "exact", "C"),
        ("Cost of one run", "WRN-28-10, 200 epochs", "petaflop", 315, "exact", "C"),
    ],
    "xie2017": [
        ("Table 3", "50-layer, 1x64d", "top1_error", 23.9, "single", "V:S5"),
        ("Table 3", "50-layer, 32x4d", "top1_error", 22.2, "single", "V:S5"),
        ("Table 3", "101-layer, 8x14d", "top1_error", 21.3, "single", "V:S5"),
        ("Table 4", "ResNet-101, wider, 1x100d", "top1_error", 21.3, "single", "V:S5"),
        ("Table 4", "ResNeXt-101, 64x4d", "top5_error", 5.3, "single", "V:S5"),
        ("Without residual connections", "ResNet-50, without", "top1_error", 31.2, "single", "V:S5"),
        ("Without residual connections", "ResNeXt-50, without", "top1_error", 26.1, "single", "V:S5"),
        ("Table 5", "ResNeXt-101, 64x4d", "top1_error", 19.1, "single", "M"),
        ("Table 5", "ResNeXt-101, 64x4d", "top5_error", 4.4, "single", "V:S5"),
        ("ILSVRC 2016", "ensemble, test set", "top5_error", 3.03, "ensemble", "V:S5"),
        ("Table 7, CIFAR-10", "8x64d", "top1_error", 3.65, "mean", "V:S5"),
        ("Table 7, CIFAR-100", "16x64d", "top1_error", 17.31, "mean", "V:S5"),
        ("Exact counts", "29, 32x4d", "parameters", 4_775_754, "exact", "C"),
    ],
    "huang2016": [
        ("CIFAR-10+", "constant depth", "top1_error", 6.41, "val-selected", "V:S6"),
        ("CIFAR-10+", "stochastic depth", "top1_error", 5.25, "val-selected", "V:S6"),
        ("CIFAR-10+", "stochastic depth, v1", "top1_error", 5.23, "val-selected", "V:S6"),
        ("CIFAR-100+", "constant depth", "top1_error", 27.76, "val-selected", "V:S6"),
        ("CIFAR-100+", "stochastic depth", "top1_error", 24.98, "val-selected", "V:S6"),
        ("CIFAR-10", "stochastic depth", "top1_error", 11.66, "val-selected", "V:S6"),
        ("CIFAR-100", "constant depth", "top1_error", 44.74, "val-selected", "V:S6"),
        ("CIFAR-10+, 1202 layers", "stochastic depth", "top1_error", 4.91, "val-selected", "V:S6"),
        ("SVHN", "stochastic depth", "top1_error", 1.75, "val-selected", "V:S6"),
        ("ImageNet", "stochastic depth, 90 epochs", "top1_error", 23.38, "single", "V:S6"),
    ],
    "huang2017": [
        ("CIFAR-10", "L = 40, k = 12", "top1_error", 7.00, "single", "V:S7"),
        ("CIFAR-10+", "L = 100, k = 24", "top1_error", 3.74, "single", "V:S7"),
        ("CIFAR-100", "BC, L = 250, k = 24", "top1_error", 19.64, "single", "V:S7"),
        ("CIFAR-100+", "BC, L = 190, k = 40", "top1_error", 17.18, "single", "V:S7"),
        ("ImageNet", "DenseNet-161", "top1_error", 22.2, "single", "V:S7"),
        ("Exact counts", "L = 100, k = 12", "parameters", 6_979_642, "exact", "C"),
        ("Exact counts", "DenseNet-121", "multiply_adds", 2.834e9, "exact", "C"),
    ],
    "veit2016": [
        ("Path lengths", "paths through 19 to 35 modules", "paths_percent", 95, "single", "V:S8"),
        ("Path lengths", "paths through 5 to 17 modules", "paths_percent", 0.45, "single", "V:S8"),
        ("Training only the effective paths", "23 modules sampled for each batch", "top1_error", 5.96, "single", "V:S8"),
        ("Training only the effective paths", "full training", "top1_error", 6.10, "single", "V:S8"),
    ],
    "hu2018": [
        ("ImageNet", "SE-ResNet-50", "top1_error", 23.29, "single", "M"),
        ("ImageNet, retrained", "SE-ResNet-50", "top1_error", 22.37, "single", "V:S13"),
        ("ImageNet, retrained", "SENet-154", "top5_error", 4.47, "single", "V:S13"),
        ("CIFAR-10", "SE-ResNet-164", "top1_error", 4.39, "single", "V:S17"),
        ("CIFAR-10", "ResNet-110", "top1_error", 6.37, "single", "M"),
        ("CIFAR-100", "SE-ResNet-110", "top1_error", 23.85, "single", "V:S17"),
        ("Exact counts", "SE-ResNet-152", "parameters", 66_821_848, "exact", "C"),
    ],
    "he2018": [
        ("Architectures", "R50-D", "top1_accuracy", 77.16, "single", "M"),
        ("Training refinements", "distillation and mixup", "top5_accuracy", 94.63, "single", "M"),
        ("Exact counts", "R50-D", "parameters", 25_576_264, "exact", "C"),
    ],
    "zhang2019": [
        ("CIFAR-10", "Fixup", "top1_error", 7.24, "single", "M"),
        ("ImageNet", "ResNet-50, Fixup", "top1_error", 27.6, "single", "M"),
    ],
    "bachlechner2020": [
        ("CIFAR-10", "ResNet-56", "top1_error", 7.37, "mean", "V:S16"),
        ("CIFAR-10", "ResNet-110, ReZero", "top1_error", 5.93, "mean", "M"),
    ],
    "torchvision": [
        ("V1", "ResNet-50", "top1_accuracy", 76.130, "single", "V:S10"),
        ("V1", "ResNet-152", "top5_accuracy", 94.046, "single", "V:S10"),
        ("V2", "ResNet-50", "top1_accuracy", 80.858, "single", "V:S10"),
        ("V2", "ResNeXt-101 64x4d", "top1_accuracy", 83.246, "single", "V:S10"),
        ("DenseNet", "DenseNet-121", "top1_accuracy", 74.434, "single", "V:S10"),
        ("Cost of one run", "ResNet-50, 90 epochs", "petaflop", 2829, "exact", "C"),
    ],
    "fb_resnet_torch": [
        ("1-crop", "ResNet-18", "top1_error", 30.43, "single", "V:S9"),
        ("10-crop", "ResNet-200", "top1_error", 20.15, "single", "V:S9"),
    ],
    "wightman2021": [
        ("A1", "ResNet-50", "top1_accuracy", 80.382, "single", "V:S11"),
        ("A2", "ResNet-50, 288", "top1_accuracy", 80.774, "single", "V:S11"),
        ("A3", "ResNet-50, the paper", "top1_accuracy", 78.1, "single", "M"),
        ("A3", "ResNet-18", "top1_accuracy", 68.250, "single", "V:S11"),
    ],
    "kolesnikov2020": [("BiT R50x1", "distilled", "top1_accuracy", 82.820, "single", "V:S11")],
    "reruns": [
        ("akamaster/pytorch_resnet_cifar10", "ResNet-20", "top1_error", 8.27, "test-selected", "V:S16"),
        ("akamaster/pytorch_resnet_cifar10", "ResNet-1202", "top1_error", 6.18, "test-selected", "V:S16"),
        ("akamaster/pytorch_resnet_cifar10, rerun by others", "mean", "top1_error", 7.36, "mean", "V:S16"),
        ("akamaster/pytorch_resnet_cifar10, rerun by others", "run 5", "top1_error", 8.42, "test-selected", "V:S16"),
        ("hysts/pytorch_image_classification", "ResNet-110", "top1_error", 6.52, "median", "V:S15"),
        ("osmr/imgclsmob, CIFAR-10", "WRN-28-10", "top1_error", 2.39, "test-selected", "V:S14"),
        ("osmr/imgclsmob, CIFAR-100", "ResNet-164", "top1_error", 20.44, "test-selected", "V:S14"),
        ("mmpretrain, 100 epochs", "ResNet-50 v1d", "top1_accuracy", 77.54, "single", "V:S12"),
        ("mmpretrain, ResNet strikes back", "ResNet-50, A3", "top1_accuracy", 78.30, "single", "V:S12"),
        ("flax example", "ResNet-50, highest", "top1_accuracy", 76.72, "single", "V"),
    ],
}

# What papers.md gives with more than a value: relation, spread, runs.
MEANT = [
    ("he2015", "Table 6", "ResNet-110", ("=", 6.43, None, 5)),
    ("he2015", "Table 6", "ResNet-110, mean of 5", ("=", 6.61, 0.16, 5)),
    ("he2015", "Table 6", "Highway-19, mean", ("=", 7.72, 0.16, None)),
    ("he2015", "Figure 6", "plain-110", (">", 60.0, None, None)),
    ("he2015", "Figure 6", "ResNet-1202", ("<", 0.1, None, None)),
    ("he2016", "Table 1", "original", ("=", 6.61, None, 5)),
    ("he2016", "Table 4, CIFAR-10", "ResNet-1001, mean of 5", ("=", 4.89, 0.14, 5)),
    ("he2016", "Table 4, CIFAR-10", "ResNet-1001, batch of 64, mean of 5", ("=", 4.69, 0.20, 5)),
    ("he2016", "Table 4, CIFAR-100", "ResNet-1001, mean of 5", ("=", 22.68, 0.22, 5)),
    ("huang2016", "Training time", "survival 0.5", ("~", 25.0, None, None)),
    ("huang2016", "Training time", "survival 0.2", ("=", 40.0, None, None)),
    ("de2020", "SkipInit", "SkipInit, beyond BatchNorm", ("~", 0.5, None, None)),
    ("xie2017", "Table 3, FLOPs", "50-layer", ("~", 4.1e9, None, None)),
    ("xie2017", "Table 7, CIFAR-10", "16x64d", ("=", 3.58, None, 10)),
    ("reruns", "akamaster/pytorch_resnet_cifar10, rerun by others", "mean", ("=", 7.36, 0.16, None)),
    ("reruns", "hysts/pytorch_image_classification", "ResNet-110", ("=", 6.52, None, 3)),
    ("reruns", "haiku example", "ResNet-50", ("~", 77.0, None, None)),
    ("bachlechner2020", "CIFAR-10", "ResNet-110, ReZero", ("=", 5.93, 0.12, None)),
]


def entries() -> Iterable[Entry]:
    return (entry for key in SPLIT for entry in ledger.load(key).entries)


def test_these_are_the_sources() -> None:
    assert ledger.papers() == sorted(SPLIT)


@pytest.mark.parametrize(("key", "split"), SPLIT.items())
def test_each_source_has_the_numbers_of_papers_md(key: str, split: tuple[int, int]) -> None:
    found = Counter(entry.verified for entry in ledger.load(key).entries)
    assert (found[True], found[False]) == split


@pytest.mark.parametrize("key", SPLIT)
def test_each_source_says_who_where_and_how(key: str) -> None:
    paper = ledger.load(key)
    assert paper.key == key
    for text in (paper.title, paper.authors, paper.source):
        assert text.strip()
    for entry in paper.entries:
        assert entry.paper == key
        assert entry.table.strip()
        assert entry.row.strip()
        assert entry.metric in ledger.METRICS
        # papers.md: V with a source or without one, C, M, M-.
        assert entry.mark in {"V", "C", "M", "M-", *(f"V:S{n}" for n in range(1, 18))}, entry
        assert entry.statistic in {"single", "best", "mean", "median", "val-selected", "test-selected", "ensemble", "exact"}, entry
        assert (entry.mark == "C") <= (entry.statistic == "exact"), "what is computed is of no run"
        assert entry.value > 0


@pytest.mark.parametrize("key", SPLIT)
def test_one_place_has_one_number(key: str) -> None:
    places = Counter((entry.table, entry.row, entry.metric) for entry in ledger.load(key).entries)
    assert [place for place, times in places.items() if times > 1] == []


def test_enough_was_typed() -> None:
    """At least 60 of them, of every source of which papers.md has more than a remembered line."""
    assert sum(map(len, GOLDEN.values())) >= 60
    assert {*GOLDEN, "de2020", "goyal2017"} == set(SPLIT)


@pytest.mark.parametrize(
    ("key", "golden"), [(key, each) for key, each_of in GOLDEN.items() for each in each_of], ids=lambda value: str(value)[:60]
)
def test_the_numbers_are_those_of_papers_md(key: str, golden: tuple[str, str, str, float, str, str]) -> None:
    table, row, metric, value, statistic, mark = golden
    (found,) = (e for e in ledger.load(key).entries if (e.table, e.row, e.metric) == (table, row, metric))
    assert (found.value, found.statistic, found.mark) == (value, statistic, mark)
    assert found.relation == "="
    assert found.verified == (not mark.startswith("M"))


@pytest.mark.parametrize(("key", "table", "row", "meant"), MEANT, ids=lambda value: str(value)[:40])
def test_bounds_spreads_and_runs_are_kept(key: str, table: str, row: str, meant: tuple[str, float, float | None, int | None]) -> None:
    (found, *_) = (e for e in ledger.load(key).entries if (e.table, e.row) == (table, row))
    assert (found.relation, found.value, found.spread, found.runs) == meant


def test_the_fails_of_he_2016_are_errors_above_20_percent() -> None:
    """Table 1: plain network, 0.5 and 1, exclusive gating from 0 to -5, dropout."""
    fails = [entry for entry in entries() if entry.failed]
    assert [(entry.paper, entry.table, entry.row) for entry in fails] == [
        ("he2016", "Table 1", "constant scaling 0, 1"),
        ("he2016", "Table 1", "constant scaling 0.5, 1"),
        ("he2016", "Table 1", "exclusive gating, bias 0 to -5"),
        ("he2016", "Table 1", "dropout shortcut"),
    ]
    assert {(entry.relation, entry.value) for entry in fails} == {(">", 20.0)}


def test_how_a_number_is_written() -> None:
    written = {(entry.paper, entry.table, entry.row, entry.metric): str(entry) for entry in entries()}
    assert written["he2015", "Table 6", "ResNet-20", "top1_error"] == "8.75"
    assert written["he2015", "Table 6", "ResNet-110, mean of 5", "top1_error"] == "6.61 ± 0.16"
    assert written["he2015", "Figure 6", "plain-110", "top1_error"] == "> 60"
    assert written["he2015", "Figure 6", "ResNet-1202", "training_error"] == "< 0.1"
    assert written["he2015", "Table 6, exact counts", "ResNet-1202", "parameters"] == "19,421,274"
    assert written["he2015", "Table 1", "ResNet-50", "flops"] == "3,800,000,000"
    assert written["he2016", "Table 1", "dropout shortcut", "top1_error"] == "fail (> 20)"
    assert written["huang2016", "Training time", "survival 0.5", "time_saved_percent"] == "~ 25"
    assert written["xie2017", "Table 3, FLOPs", "50-layer", "flops"] == "~ 4,100,000,000"


def test_the_costs_are_six_times_the_multiply_adds_times_the_images() -> None:
    """papers.md A13, by hand from the millions of its Table 6: 64,000 x 128 images."""
    costs = {entry.row: entry for entry in ledger.load("he2015").entries if entry.metric == "petaflop"}
    millions = {20: 40.55, 32: 68.86, 44: 97.17, 56: 125.49, 110: 252.89, 1202: 2829.24}
    for depth, each in millions.items():
        entry = costs[f"ResNet-{depth}"]
        assert entry.value == float(f"{6 * each * 1e6 * 64_000 * 128 / 1e15:.{(entry.digits or 0) - 1}e}"), depth


# The circumstances.


def test_he_2015_table_6_states_these_circumstances_and_no_others() -> None:
    """papers.md A1 and A12: 64k iterations of 128 on two GPUs; 45k or 50k images is not said."""
    (entry,) = (e for e in ledger.load("he2015").entries if (e.table, e.row) == ("Table 6", "ResNet-20"))
    assert entry.protocol == {
        "dataset": "cifar10",
        "test_images": 10_000,
        "steps": 64_000,
        "batch_size": 128,
        "normalisation": "BatchNorm",
        "batch_norm_group": 64,
        "preprocessing": "pixel_mean",
        "augmentation": "pad 4, random crop, random flip",
        "view": "single 32x32",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }


def test_a_row_may_state_other_circumstances_than_its_table() -> None:
    found = {e.row: e.protocol for e in ledger.load("he2016").entries if e.table == "Table 5"}
    assert found["ResNet-152, original, 224"]["view"] == "single 224x224 of 256"
    assert found["ResNet-200, original, 320"]["view"] == "single 320x320 of 320"
    # "differs" changes one field of the table's and leaves the others, and the table's, alone.
    usual, aspect = found["ResNet-200, pre-activation, 320"], found["ResNet-200, pre-activation, aspect ratio, 320"]
    assert {name for name in usual if usual[name] != aspect[name]} == {"augmentation"}
    assert usual.keys() == aspect.keys()


def test_huang_2016_selects_on_validation_images_and_takes_500_epochs_of_352_steps() -> None:
    """papers.md A5: 45k and 5k images, 500 epochs; 300 for 1202 layers. 45,000 / 128, rounded up, is 352."""
    found = {(e.table, e.row): e.protocol for e in ledger.load("huang2016").entries}
    usual = found["CIFAR-10+", "constant depth"]
    assert (usual["training_images"], usual["validation_images"], usual["selection"]) == (45_000, 5000, "validation error")
    assert usual["steps"] == 500 * 352
    assert found["CIFAR-10+, 1202 layers", "stochastic depth"]["steps"] == 300 * 352
    assert found["CIFAR-100", "constant depth"]["augmentation"] == "none"
    assert found["CIFAR-100", "constant depth"]["dataset"] == "cifar100"


def test_what_was_trained_on_100_classes_says_so() -> None:
    for entry in entries():
        if entry.network and entry.protocol.get("dataset") in ("cifar10", "cifar100"):
            architecture = entry.architecture()
            assert architecture is not None
            assert architecture.num_classes == (100 if entry.protocol["dataset"] == "cifar100" else 10), entry


# The networks.


def test_a_network_is_built_from_its_name_and_fields() -> None:
    found = {(e.table, e.row): e.architecture() for e in ledger.load("he2016").entries}
    assert found["Table 1", "original"] == NETWORKS["cifar_resnet110"]
    expected = dataclasses.replace(NETWORKS["cifar_resnet110"], shortcut=models.configured(Scaled, shortcut=0.5, branch=0.5))
    assert found["Table 1", "constant scaling 0.5, 0.5"] == expected
    assert {e.architecture() for e in ledger.load("he2015").entries if e.row == "Maxout"} == {None}


def test_errors_that_are_quoted_from_he_2016_are_of_its_networks() -> None:
    """He et al. 2016, Tables 2 and 3: 164 layers have 5.93 and 25.16 as they were, 5.46 and 24.33 with full pre-activation. Who quotes the
    latter two means the latter network, whatever he calls it.
    """
    preactivated = {entry.architecture() for entry in ledger.load("he2016").entries if entry.value in (5.46, 24.33)}
    assert {each.num_classes for each in preactivated if each} == {10, 100}
    quoted = [entry for entry in ledger.load("hu2018").entries if entry.value in (5.46, 24.33) and entry.row == "ResNet-164"]
    assert len(quoted) == 2
    assert {entry.architecture() for entry in quoted} <= preactivated | {None}


COUNTED = [
    entry for entry in entries() if entry.network and entry.mark == "C" and entry.metric in ("parameters", "multiply_adds", "projections")
]


@functools.cache
def count(architecture: Architecture) -> models.Counts:
    return models.count(architecture)


# Networks are traced layer by layer: minutes all in all. tests/models has quick tests of counts.
@pytest.mark.slow
@pytest.mark.parametrize("key", sorted({each.paper for each in COUNTED}))
def test_our_networks_have_exactly_the_counts(key: str) -> None:
    """Every count that papers.md calls computed, to the digits that it prints."""
    wrong = []
    for entry in (each for each in COUNTED if each.paper == key):
        architecture = entry.architecture()
        assert architecture is not None
        ours = getattr(count(architecture), entry.metric)
        rounded = ours if entry.digits is None else float(f"{ours:.{entry.digits - 1}e}")
        if rounded != entry.value:
            wrong.append((entry.table, entry.row, entry.metric, entry.value, ours))
    assert wrong == []


def test_there_are_counts_of_these_many_networks() -> None:
    """papers.md by hand. Networks: A1 13 and 20, A2 10, A3 15, A4 7, A6 10, A8 3, A9 1 (A11's ResNet-50 is one of A1's). Numbers: A1 13
    multiply-adds, 10 parameters, 2 projections and 24 + 6 + 2 of Table 6, A2 11, A3 15, A4 8, A6 11, A8 3, A9 2, A11 1.
    """
    assert len({each.architecture() for each in COUNTED}) == 79
    assert len(COUNTED) == 108


STUDIES = sorted({entry.study for entry in entries() if entry.study})


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_has_a_cell_for_every_error_that_names_it(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same network, same data set, same batch size."""
    monkeypatch.chdir(ROOT)
    cells = references.load(study)()
    ours = {(comparison.structure(resolved.resolve(cell.model)), cell.data.name, cell.batch_size) for cell in cells}
    missing = []
    for entry in entries():
        if entry.study != study or not entry.network or entry.metric != "top1_error":
            continue
        wanted = comparison.structure(resolved.resolve(entry.architecture()))
        stated = entry.protocol
        if not any((wanted, stated["dataset"], stated.get("batch_size", size)) == (network, data, size) for network, data, size in ours):
            missing.append((entry.paper, entry.table, entry.row))
    assert missing == []


def test_the_main_tables_name_their_studies() -> None:
    """Each is an experiment file's function, and the errors of these tables say which."""
    assert {
        "experiments/he2015_cifar10.py:table6",
        "experiments/he2015_imagenet.py:table2",
        "experiments/he2016_shortcuts.py:table1",
        "experiments/he2016_orders.py:table2",
        "experiments/huang2016_stochastic_depth.py:cifar10",
        "experiments/huang2017_densenet.py:cifar10",
        "experiments/xie2017_resnext.py:table3",
        "experiments/zagoruyko2016_wide.py:cifar10",
    } <= set(STUDIES)
    assert all((ROOT / study.partition(":")[0]).is_file() for study in STUDIES)


# Files that do not keep to the form.

HEAD = """
[paper]
key = "made"
title = "Made up"
authors = "Nobody"
source = "nowhere"

[protocol.small]
dataset = "cifar10"
steps = 64000

[[table]]
name = "Table 9"
statistic = "single"
mark = "V:S1"
rows = [
"""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads rows of a table, or a whole file where ``head`` is another."""
    monkeypatch.setattr(ledger, "_folder", lambda: tmp_path)

    def load(rows: str, head: str = HEAD, end: str = "]\n") -> list[Entry]:
        (tmp_path / "made.toml").write_text(head + rows + "\n" + end)
        ledger.load.cache_clear()
        return list(ledger.load("made").entries)

    yield load
    ledger.load.cache_clear()


def test_a_row_in_its_shortest_form(read: Any) -> None:
    (entry,) = read('{ row = "a", top1_error = 8.75 },')
    assert (entry.paper, entry.table, entry.row, entry.metric) == ("made", "Table 9", "a", "top1_error")
    assert (entry.value, entry.relation, entry.spread, entry.runs, entry.digits) == (8.75, "=", None, None, None)
    assert (entry.protocol, entry.network, entry.study, entry.note) == ({}, None, None, "")
    assert entry.architecture() is None


@pytest.mark.parametrize(
    ("written", "number", "shown"),
    [
        ('"fail"', (20.0, ">"), "fail (> 20)"),
        ('"> 60"', (60.0, ">"), "> 60"),
        ('"< 0.1"', (0.1, "<"), "< 0.1"),
        ('"~ 25"', (25.0, "~"), "~ 25"),
        ('"= 5"', (5.0, "="), "5"),
        ("5", (5.0, "="), "5"),
        ('{ value = "> 60", n = 3 }', (60.0, ">"), "> 60"),
        ("{ value = 6.61, spread = 0.16, n = 5 }", (6.61, "="), "6.61 ± 0.16"),
    ],
)
def test_how_a_number_may_be_written(read: Any, written: str, number: tuple[float, str], shown: str) -> None:
    (entry,) = read(f'{{ row = "a", top1_error = {written} }},')
    assert (entry.value, entry.relation) == number
    assert str(entry) == shown
    assert entry.failed == (shown == "fail (> 20)")


def test_an_accuracy_above_20_is_no_failure(read: Any) -> None:
    (entry,) = read('{ row = "a", top1_accuracy = "> 20" },')
    assert not entry.failed
    assert str(entry) == "> 20"


def test_a_cell_wins_over_its_row_and_a_row_over_its_table(read: Any) -> None:
    rows = '{ row = "a", mark = "M", statistic = "mean", top1_error = { value = 5, mark = "C", statistic = "best" }, top5_error = 1 },'
    first, second, third = read(rows + '{ row = "b", top5_error = 2 },')
    assert (first.mark, first.statistic, first.verified) == ("C", "best", True)
    assert (second.mark, second.statistic, second.verified) == ("M", "mean", False)
    assert (third.mark, third.statistic, third.verified) == ("V:S1", "single", True)


@pytest.mark.parametrize(("mark", "verified"), [("V", True), ("V:S12", True), ("C", True), ("M", False), ("M-", False)])
def test_what_a_mark_means(read: Any, mark: str, verified: bool) -> None:
    (entry,) = read(f'{{ row = "a", mark = "{mark}", top1_error = 5 }},')
    assert entry.verified is verified


PLACE = "made.toml, Table 9, a"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("top1_eror = 5", f"{PLACE}: unknown top1_eror; did you mean .*top1_error"),
        ("top1_error = 5, zzzzzz = 1", f"{PLACE}: unknown zzzzzz; there is "),
        ("top1_error = 5, netwrok = 'cifar_resnet20'", f"{PLACE}: unknown netwrok; did you mean network"),
        ("top1_error = 5, protocol = 'smal'", f"{PLACE}: there is no protocol 'smal'; did you mean small"),
        ("top1_error = 5, differs = { stps = 3 }", f"{PLACE}: no protocol has stps"),
        ("top1_error = 5, protocol = 'small', differs = { warmup = 3 }", f"{PLACE}: no protocol has warmup"),
        ("top1_error = 5, mark = ''", f"{PLACE}, top1_error: .*mark ''"),
        ("top1_error = 5, mark = 'X'", f"{PLACE}, top1_error: .*mark 'X'"),
        ("top1_error = 5, mark = 'v:S1'", f"{PLACE}, top1_error: .*mark 'v:S1'"),
        ("top1_error = 5, statistic = 'average'", f"{PLACE}, top1_error: statistic 'average'.*single, best, mean, median"),
        ("top1_error = 'eight'", f"{PLACE}: 'eight' is no number"),
        ("top1_error = '>60'", f"{PLACE}: '>60' is no number; write 8.75, 'fail', '> 60' or '~ 25'"),
        ("top1_error = '8.75'", f"{PLACE}: '8.75' is no number"),
        ("top1_error = '>= 60'", f"{PLACE}: '>= 60' is no number"),
        ("top1_error = '> '", f"{PLACE}: '> ' is no number"),
        ("top1_error = ''", f"{PLACE}: '' is no number"),
        ("top1_error = 'Fail'", f"{PLACE}: 'Fail' is no number"),
        ("top1_error = nan", f"{PLACE}: nan is no number"),
        ("top1_error = -inf", f"{PLACE}: -inf is no number"),
        ("top1_error = '> nan'", f"{PLACE}: '> nan' is no number"),
        ("top1_error = true", f"{PLACE}: True is no number"),
        ("top1_error = [8.75, 8.8]", rf"{PLACE}: \[8.75, 8.8\] is no number"),
        ("top1_error = { spread = 0.16 }", f"{PLACE}.*value"),
        # A misspelled field of a cell is a spread or a count of runs that nobody sees.
        ("top1_error = { value = 6.61, sprad = 0.16 }", f"{PLACE}.*sprad"),
        ("top1_error = { value = 6.61, runs = 5 }", f"{PLACE}.*runs"),
        (
            "note = 'nothing'",
            f"{PLACE} has no number; a metric is one of .*top-1 error|{PLACE} has no number; a metric is one of top1_error",
        ),
    ],
)
def test_a_row_that_does_not_keep_to_the_form_is_refused(read: Any, row: str, reason: str) -> None:
    """With file, table and row, and what is wrong."""
    with pytest.raises(UserError, match=reason):
        read(f'{{ row = "a", {row} }},')


def test_a_number_without_mark_or_statistic_anywhere_is_refused(read: Any) -> None:
    for line, said in (('mark = "V:S1"', "mark None"), ('statistic = "single"', "statistic None")):
        with pytest.raises(UserError, match=f"{PLACE}, top1_error: .*{said}"):
            read('{ row = "a", top1_error = 5 },', head=HEAD.replace(line, ""))


def test_a_protocol_of_unknown_fields_is_refused(read: Any) -> None:
    head = HEAD.replace("steps = 64000", "step = 64000").replace('mark = "V:S1"', 'mark = "V:S1"\nprotocol = "small"')
    with pytest.raises(UserError, match=f"{PLACE}: no protocol has step$"):
        read('{ row = "a", top1_error = 5 },', head=head)


def test_a_number_stated_twice_is_refused(read: Any) -> None:
    with pytest.raises(UserError, match="made.toml states a number twice"):
        read('{ row = "a", top1_error = 5 }, { row = "a", top1_error = 5 },')
    assert len(read('{ row = "a", top1_error = 5 }, { row = "b", top1_error = 5 },')) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('name = "Table 9"', 'name = "Table 9', id="no TOML"),
        pytest.param('title = "Made up"\n', "", id="no title"),
        pytest.param('title = "Made up"\n', 'title = "Made up"\nyear = 2016\n', id="more than a paper has"),
        pytest.param('name = "Table 9"\n', "", id="a table without a name"),
        pytest.param('mark = "V:S1"\n', 'mark = "V:S1"\nprotcol = "small"\n', id="a misspelled field of a table"),
    ],
)
def test_a_file_that_does_not_keep_to_the_form_is_refused(read: Any, old: str, new: str) -> None:
    """``load`` promises a UserError that says which file."""
    assert old in HEAD
    with pytest.raises(UserError, match="made"):
        read('{ row = "a", top1_error = 5 },', head=HEAD.replace(old, new))


def test_a_row_without_a_name_is_refused(read: Any) -> None:
    with pytest.raises(UserError, match="made.toml, Table 9"):
        read("{ top1_error = 5 },")


def test_an_unknown_source_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="the ledger has no paper 'he2051'; did you mean .*he2015"):
        ledger.load("he2051")


def test_an_entry_of_an_unknown_network_says_so(read: Any) -> None:
    (entry,) = read('{ row = "a", network = "cifar_resnet_20", top1_error = 5 },')
    with pytest.raises(UserError, match="no network is called 'cifar_resnet_20'; did you mean .*cifar_resnet20"):
        entry.architecture()


def test_every_network_of_the_ledger_can_be_made() -> None:
    made = {str(entry.network): entry.architecture() for entry in entries() if entry.network}
    assert all(isinstance(each, Architecture) for each in made.values())
    assert made["{'name': 'cifar_resnet20'}"] == cifar_architecture(20)
