import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from pocketdiffusion.eval.plots import bars, heat, lines, ticks
from pocketdiffusion.eval.report import Report, grid, to_pil


class Balanced(HTMLParser):
    """Fails on a tag that is closed wrongly or not at all."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def numbers(svg, tag, *names):
    root = ElementTree.fromstring(svg.replace(' xmlns="http://www.w3.org/2000/svg"', ""))
    return [[float(e.get(n)) for n in names] for e in root.iter(tag)]


def test_a_report_is_one_balanced_file_without_links(pictures, tmp_path):
    report = (
        Report("All").heading("Part").text("One.\n\nTwo.").code("pocket demo").table([{"a": 1, "b": "x"}])
    )
    report.grid(pictures, ["a", "b", "c"]).plot(lines({"loss": [(0, 1), (1, 0.5)]}), "a plot")
    path = report.save(tmp_path / "new" / "report.html")
    html = path.read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_all_text_is_escaped(pictures):
    bad = '<script>alert("x")</script> & more'
    report = Report(bad).heading(bad).text(bad).code(bad).table([{bad: bad}]).grid(pictures, [bad] * 3)
    html = report.plot(bars({bad: {bad: 1.0}, "b": {}}, bad, bad), bad).html()
    assert "<script" not in html
    # title 2, heading, text, code, table 2, captions 3 and as many descriptions; plot 5
    assert html.count("&lt;script&gt;") == 18


def test_pictures_come_back_bit_by_bit(pictures):
    html = Report("x").grid(pictures).html()
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    shown = [Image.open(io.BytesIO(base64.b64decode(f))) for f in found]
    assert [p.tobytes() for p in shown] == [p.tobytes() for p in to_pil(pictures)]


def test_pixels_become_bytes():
    x = torch.tensor([-1.0, 0.0, 1.0, -2.0, 2.0]).view(5, 1, 1, 1).expand(5, 3, 1, 1)
    assert [p.getpixel((0, 0))[0] for p in to_pil(x)] == [0, 128, 255, 0, 255]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = Report("old").save(tmp_path / "report.html")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Report("new").save(path)
    assert "old" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_columns_of_numbers_stand_to_the_right():
    html = Report("x").table([{"name": "a", "n": 1, "share": 0.123456}, {"name": "b", "n": None}]).html()
    assert "<tr><td>a</td>" + '<td class="number">1</td><td class="number">0.1235</td></tr>' in html
    assert "<tr><td>b</td>" + '<td class="number">-</td><td class="number">-</td></tr>' in html


def test_grid_places_pictures_in_rows_enlarged_by_whole_pixels(pictures):
    sheet = grid(pictures, columns=2, cell=20)
    # 8 pixels fit twice into 20; a gap of 12 around each
    assert sheet.size == (2 * (16 + 12) + 12, 2 * (16 + 12) + 12)
    third = to_pil(pictures)[2]
    assert sheet.crop((12, 40, 28, 56)).resize((8, 8), Image.Resampling.NEAREST).tobytes() == third.tobytes()


def test_captions_lie_beneath_and_long_ones_wrap(pictures):
    plain, short, long = (
        grid(pictures, c, columns=3) for c in ([], ["a"] * 3, ["a", "b", "two words " * 12])
    )
    assert plain.height < short.height < long.height
    beneath = short.crop((0, 12 + 192, short.width, short.height))
    assert min(beneath.convert("L").getextrema()) < 128


def test_captions_must_match(pictures):
    with pytest.raises(ValueError, match="captions"):
        grid(pictures, ["one"])
    with pytest.raises(ValueError, match="captions"):
        Report("x").grid(pictures, ["one"])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 2400, [0, 500, 1000, 1500, 2000, 2500]),
        (-3, 5, [-4, -2, 0, 2, 4, 6]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_constant_and_of_nonsense():
    assert ticks(3, 3)[0] < 3 < ticks(3, 3)[-1]
    with pytest.raises(ValueError, match="nan"):
        ticks(0, float("nan"))


def test_points_lie_where_the_axes_say():
    marks = numbers(lines({"a": [(0, 0), (5, 1), (10, 0.5)]}, "x", "y"), "circle", "cx", "cy")
    (x0, y0), (x1, y1), (x2, y2) = marks
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y2 == pytest.approx((y0 - y1) / 2, abs=0.2)


def test_bars_are_as_long_as_their_values():
    shapes = numbers(bars({"a": {"one": 1.0, "two": 2.0}, "b": {"one": -1.0}}), "rect", "x", "width")
    # two swatches of the legend come first
    one, minus, two = shapes[2:]
    assert two[1] == pytest.approx(2 * one[1], abs=0.2)
    assert minus[0] + minus[1] == pytest.approx(one[0], abs=0.2)


def test_a_map_has_a_square_for_each_share():
    svg = heat({"a.attn": [1, 0, 0.5], "a.mlp": [0, 1, 1]}, "step", "a plan")
    squares = numbers(svg, "rect", "x", "y", "fill-opacity")
    assert len(squares) == 6 and {y for _, y, _ in squares} == {squares[0][1], squares[3][1]}
    assert [o for *_, o in squares[:3]] == [1.0, 0.08, 0.54] and squares[0][0] < squares[1][0] < squares[2][0]
    assert all(word in svg for word in ("a.attn", "a.mlp", ">step<", "a plan"))
    with pytest.raises(ValueError, match="at least one square"):
        heat({})


def test_every_chart_names_its_axes_and_series():
    chart = lines({"loss": [(0, 1), (1, 0)], "held out": [(0, 1), (1, 2)]}, "step", "nats")
    assert all(f">{word}</text>" in chart for word in ("loss", "held out", "step", "nats"))
    with pytest.raises(ValueError, match="at least one"):
        lines({"loss": []})


def test_grids_beside_each_other(pictures):
    html = Report("x").beside({"a": pictures, "<b>": pictures}, ["1", "2", "3"]).html()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == [] and html.count('<div class="grid"') == 2 and html.count("<img") == 6
    assert "<h3>a</h3>" in html and "<h3>&lt;b&gt;</h3>" in html
