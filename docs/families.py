"""Families of shortcuts: texts, formulas and drawings of their pages; generate.py writes those."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

GRAY, ORANGE, BLUE = "#7d8590", "#d55e00", "#2f81f7"


@dataclass(frozen=True)
class Part:
    """Resize and factor of x, factor of the residual branch F(x), and their merge."""

    resize: str = ""
    """Layers on x, where resolution or width changes."""
    always: bool = False
    """``resize`` is in every block."""
    on_x: str = ""
    """Factor of x."""
    on_branch: str = ""
    """Factor of F(x)."""
    merge: str = "+"
    """``+``, ``concat``, or empty: the branch alone."""
    where: str = ""
    """Definition of the symbols."""

    def formula(self) -> str:
        x = "R(x)" if self.always else "x"
        carried, branch = f"{self.on_x} {x}".strip(), f"{self.on_branch} F(x)".strip()
        if not self.merge:
            return f"y = {branch}"
        if self.merge == "concat":
            return f"y = [{carried}, {branch}]"
        return f"y = {carried} + {branch}"


_ZEROS = "subsampling, zero channels"
_GATE = "g(x) = sigmoid(W x + b), a 1x1 convolution"

PARTS: dict[str, Part] = {
    "NoShortcut": Part(merge=""),
    "ZeroPad": Part(_ZEROS),
    "PooledZeroPad": Part("average pooling, zero channels"),
    "Projection": Part("strided 1x1 conv, norm"),
    "ProjectionEverywhere": Part("1x1 conv, norm", always=True, where="R: 1x1 conv, norm"),
    "PooledProjection": Part("average pooling, 1x1 conv, norm"),
    "Scaled": Part(_ZEROS, on_x="a", on_branch="b", where="a, b: constants"),
    "LearnedScalar": Part(_ZEROS, on_branch="α", where="α: a parameter per block, initially 0"),
    "ExclusiveGating": Part(_ZEROS, on_x="(1 - g(x))", on_branch="g(x)", where=_GATE),
    "ShortcutOnlyGating": Part(_ZEROS, on_x="(1 - g(x))", where=_GATE),
    "DropoutShortcut": Part(
        _ZEROS, on_x="m", where="m: 0 with probability rate, else 1; in evaluation 1 - rate"
    ),
    "Concatenation": Part(merge="concat"),
}


@dataclass(frozen=True)
class Family:
    """A page: its shortcuts and the papers that introduce or compare them."""

    title: str
    shortcuts: tuple[str, ...]
    papers: tuple[str, ...]
    text: str


FAMILIES: dict[str, Family] = {
    "plain": Family(
        "No shortcut",
        ("NoShortcut",),
        ("he2015",),
        """\
A plain block returns its residual branch alone. Plain networks degrade: beyond some depth,
more layers raise the *training* error (He et al. 2015, Figures 1 and 4). Every network has a
plain form with the same branches, widths and initialization: `shortcut=shortcuts.NoShortcut`.""",
    ),
    "identity": Family(
        "Identity and zero padding",
        ("ZeroPad", "PooledZeroPad"),
        ("he2015", "he2016", "huang2016"),
        """\
The identity shortcut adds x to the branch and has no parameters. A block that changes
resolution and width subsamples x or averages it, and appends zero channels. With identity
shortcuts and nothing after the addition, the gradient of a block's output reaches its input
unchanged, as one term of a sum (He et al. 2016, Section 2).

`ZeroPad(resize='pad-both')` puts half of the zero channels before those of x, as in
akamaster's networks.""",
    ),
    "projection": Family(
        "Projections",
        ("Projection", "ProjectionEverywhere"),
        ("he2015", "he2016"),
        """\
A projection is a 1x1 convolution and a normalization. Option B has it where shapes change,
option C in every block. He et al. 2015, Section 4.1, find small differences between A, B and
C, so projections are not essential against degradation. With 110 layers, option C is worse
than the identity (He et al. 2016, Table 1).""",
    ),
    "pooled": Family(
        "Pooled projection",
        ("PooledProjection",),
        ("he2018",),
        """\
A strided 1x1 convolution reads one of four pixels of x. ResNet-D averages x over the stride
first, and then projects it at stride 1. The networks `resnet50_d` and others of that name also
have its deep stem.""",
    ),
    "scaling": Family(
        "Scaling and learned scalars",
        ("Scaled", "LearnedScalar"),
        ("he2016", "bachlechner2020", "de2020"),
        """\
A constant factor on every shortcut multiplies the signal of L blocks by its L-th power, which
vanishes or explodes (He et al. 2016, Section 3). A factor on the branch has no such effect.
ReZero and SkipInit learn it, from 0: each block is the identity at initialization, and deep
networks train without normalization (`--model.norm NoNorm`).""",
    ),
    "gating": Family(
        "Gating",
        ("ExclusiveGating", "ShortcutOnlyGating"),
        ("he2016",),
        """\
A gate decides per pixel and channel how much of x passes. Highway networks gate both paths,
with weights that sum to 1. The bias b decides the initial gate: for -6, 1 - g(x) is close to
1, and the shortcut is close to the identity. Gates have more parameters than the identity and
contain it, but optimize worse (He et al. 2016, Section 3.2).""",
    ),
    "dropout": Family(
        "Dropout",
        ("DropoutShortcut",),
        ("he2016",),
        """\
Dropout of x at rate 0.5 multiplies the shortcut by 0.5 in expectation. As with a constant
factor, the signal of many blocks vanishes, and 110 layers do not reach a good solution (He et
al. 2016, Section 3.1). Dropout inside the branch is another option: `--model.branch
"Basic(dropout=0.3)"`, as in Wide ResNets.""",
    ),
    "concatenation": Family(
        "Concatenation",
        ("Concatenation",),
        ("huang2017",),
        """\
DenseNet concatenates instead of adding. Each block appends k channels, the growth rate, and
reads the channels of all blocks of its stage before it. Transitions between stages halve the
resolution and, in DenseNet-BC, the width.""",
    ),
}


_LEFT, _MERGE, _MIDDLE = 60, 500, 105  # the split of x, and the addition


def _path(y: int, boxes: list[tuple[str, str, str]], end: str) -> Iterator[str]:
    """Yields a path from the split to ``end`` through (text, color, dashes) at equal distances."""
    widths = [8.4 * len(text) + 24 for text, _, _ in boxes]
    gap = (_MERGE - _LEFT - sum(widths)) / (len(boxes) + 1)
    x, start = _LEFT + gap, f"M{_LEFT} {_MIDDLE}V{y}"
    for (text, color, dashes), width in zip(boxes, widths, strict=True):
        yield f'<path d="{start}H{x:.0f}" stroke="{GRAY}" marker-end="url(#tip)"/>'
        yield (
            f'<rect x="{x:.0f}" y="{y - 19}" width="{width:.0f}" height="38" rx="5" '
            f'stroke="{color}" stroke-dasharray="{dashes}"/>'
        )
        yield _text(x + width / 2, y + 5, text, color)
        start, x = f"M{x + width:.0f} {y}", x + width + gap
    yield f'<path d="{start}H{end}" stroke="{GRAY}" marker-end="url(#tip)"/>'


def _text(x: float, y: int, text: str, color: str = GRAY, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y}" fill="{color}" {more}>{escape(text)}</text>'


def draw(part: Part) -> str:
    """Returns the SVG of a block with a shortcut, readable on light and dark backgrounds."""
    dashes = "none" if part.always else "6 4"
    branch = [("residual branch F", ORANGE, "none")]
    branch += [(f"× {part.on_branch}", BLUE, "none")] * bool(part.on_branch)
    carried = [(part.resize, BLUE, dashes)] * bool(part.resize)
    carried += [(f"× {part.on_x}", BLUE, "none")] * bool(part.on_x)
    half = 8.4 * len(part.merge) / 2 + 14
    lines = [f'<path d="M28 {_MIDDLE}H{_LEFT}" stroke="{GRAY}"/>']
    if part.merge:
        lines += _path(60, branch, f"{_MERGE}V{_MIDDLE - 21}")
        lines += _path(150, carried, f"{_MERGE}V{_MIDDLE + 21}")
        lines += [
            f'<rect x="{_MERGE - half:.0f}" y="{_MIDDLE - 19}" width="{2 * half:.0f}" height="38" '
            f'rx="5" stroke="{BLUE}"/>',
            _text(_MERGE, _MIDDLE + 5, part.merge, BLUE),
            f'<path d="M{_MERGE + half:.0f} {_MIDDLE}H574" stroke="{GRAY}" '
            'marker-end="url(#tip)"/>',
        ]
    else:
        lines += _path(60, branch, f"{_MERGE}V{_MIDDLE}H574")
    notes = [part.where, "dashed: where resolution or width changes" * (dashes != "none")]
    notes = [note for note in notes if note and (part.resize or note != notes[1])]
    lines += [
        _text(14, _MIDDLE + 5, "x"),
        _text(588, _MIDDLE + 5, "y"),
        _text(300, 22, part.formula(), more='font-weight="bold" font-size="16"'),
        *(_text(300, 192 + 20 * i, note, more='font-size="13"') for i, note in enumerate(notes)),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 {180 + 20 * len(notes)}" '
            'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="14" '
            'text-anchor="middle" fill="none" stroke-width="2">',
            f"<title>{escape(part.formula())}</title>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="{GRAY}"/>'
            "</marker></defs>",
            *lines,
            "</svg>\n",
        ]
    )
