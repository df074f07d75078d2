"""A single-file HTML report: text, tables, picture grids and plots.

    Report("Title").heading("Samples").grid(pictures, captions).plot(lines({"loss": points})).save("out.html")

Everything is inside the file: pictures as PNG data, charts as SVG (eval/plots.py), no script. It follows the
reader's light or dark setting and fits a phone as well as a desktop.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..disk import renamed

Pictures = Tensor | Sequence[Image.Image]

STYLE = """
:root { color-scheme: light dark;
  --page: #fbfbfa; --ink: #1d2126; --soft: #68707a; --line: #e1e3e6; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15171a; --ink: #e6e8ea; --soft: #9aa2ac; --line: #2e3338; --card: #1c1f23; }
}
* { box-sizing: border-box; }
body { margin: 0; -webkit-text-size-adjust: 100%; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 18px 56px; }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: 0 0 .6em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2em 0 .6em; padding-top: 1em; border-top: 1px solid var(--line); }
p { max-width: 46em; margin: .7em 0; overflow-wrap: anywhere; white-space: pre-line; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px;
  overflow-x: auto; font: 13.5px/1.5 ui-monospace, monospace; }
.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: 6px 14px; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { padding-left: 2px; }
.number { text-align: right; }
.grid { display: grid; gap: 14px; margin: 1em 0; }
figure { margin: 0; }
.grid img { display: block; width: 100%; border-radius: 6px; border: 1px solid var(--line); }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 28px; }
.beside h3 { font-size: 1rem; margin: 1em 0 0; }
.pixels { image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: .84rem; line-height: 1.35; margin-top: 5px;
  overflow-wrap: anywhere; }
.plot { display: inline-block; width: min(100%, 460px); margin: 1.2em 14px 0 0; vertical-align: top; }
.plot svg { display: block; width: 100%; height: auto; }
"""


def to_pil(pictures: Pictures) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1], or pictures that are PIL's already."""
    if not isinstance(pictures, Tensor):
        return [p.convert("RGB") for p in pictures]
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(f"expected pictures (B, 3, H, W), got {tuple(pictures.shape)}")
    levels = ((pictures.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(p) for p in levels.permute(0, 2, 3, 1).contiguous().numpy()]


def cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Report:
    """Every method adds a part and returns the report. All text is escaped."""

    def __init__(self, title: str):
        self.title = title
        self.parts: list[str] = []

    def add(self, html: str) -> Report:
        self.parts.append(html)
        return self

    def heading(self, text: str) -> Report:
        return self.add(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> Report:
        """Paragraphs, with an empty line between them; line breaks are kept."""
        return self.add("\n".join(f"<p>{escape(part.strip())}</p>" for part in text.strip().split("\n\n")))

    def code(self, text: str) -> Report:
        """Commands or output, as they are."""
        return self.add(f"<pre>{escape(text)}</pre>")

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Report:
        """A row maps columns to values; the first row decides the columns. Numbers stand to the right."""
        if not rows:
            raise ValueError("a table needs at least one row")
        kinds = {c: all(isinstance(r.get(c), int | float | None) for r in rows) for c in rows[0]}

        def line(tag: str, values: Mapping[str, Any]) -> str:
            opened = {c: f'<{tag} class="number">' if right else f"<{tag}>" for c, right in kinds.items()}
            return (
                "<tr>" + "".join(f"{opened[c]}{escape(cell(values.get(c)))}</{tag}>" for c in kinds) + "</tr>"
            )

        body = "\n".join(line("td", r) for r in rows)
        head = line("th", {c: c for c in kinds})
        return self.add(
            f'<div class="table"><table><thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>'
        )

    def grid(self, pictures: Pictures, captions: Sequence[str] = (), width: int = 130) -> Report:
        """``width``: of the narrowest column that is still shown, in CSS pixels."""
        images = to_pil(pictures)
        if captions and len(captions) != len(images):
            raise ValueError(f"{len(images)} pictures, but {len(captions)} captions")
        figures = [figure(p, c) for p, c in zip(images, captions or [""] * len(images))]
        columns = f"grid-template-columns: repeat(auto-fill, minmax(min({width}px, 100%), 1fr))"
        return self.add(f'<div class="grid" style="{columns}">\n' + "\n".join(figures) + "\n</div>")

    def beside(self, grids: Mapping[str, Pictures], captions: Sequence[str] = (), width: int = 100) -> Report:
        """A grid of each name, in columns next to each other where the page is wide enough for that."""
        self.add('<div class="beside">')
        for name, pictures in grids.items():
            self.add(f"<div><h3>{escape(name)}</h3>").grid(pictures, captions, width).add("</div>")
        return self.add("</div>")

    def plot(self, svg: str, caption: str = "") -> Report:
        """``svg``: trusted markup, as eval/plots.py makes it."""
        below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        return self.add(f'<figure class="plot">{svg}{below}</figure>')

    def html(self) -> str:
        view = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        title = escape(self.title)
        head = f"<head>{view}\n<title>{title}</title>\n<style>{STYLE}</style></head>"
        body = "\n".join(self.parts)
        main = f"<body><main>\n<h1>{title}</h1>\n{body}\n</main></body>"
        return f'<!doctype html>\n<html lang="en">\n{head}\n{main}\n</html>\n'

    def save(self, path: str | Path) -> Path:
        """Written under a temporary name and renamed, so a report is never half a file."""
        path = Path(path)
        with renamed(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return path


def figure(picture: Image.Image, caption: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    # small pictures are shown enlarged, and must not be blurred by that
    kind = ' class="pixels"' if picture.width < 256 else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    alt = escape(caption or "picture")
    return f'<figure><img{kind} alt="{alt}" src="data:image/png;base64,{data}">{below}</figure>'


def wrap(text: str, font: Any, width: float) -> list[str]:
    """Lines of whole words; a word that is too long stands alone and is cut by the picture's edge."""
    out: list[str] = []
    for word in text.split():
        if out and font.getlength(f"{out[-1]} {word}") <= width:
            out[-1] += f" {word}"
        else:
            out.append(word)
    return out


def grid(pictures: Pictures, captions: Sequence[str] = (), columns: int = 0, cell: int = 192) -> Image.Image:
    """One picture of all, each ``cell`` pixels wide or the next whole multiple of its own size below."""
    images = to_pil(pictures)
    if not images or (captions and len(captions) != len(images)):
        raise ValueError(f"{len(images)} pictures and {len(captions)} captions do not make a grid")
    scale = max(1, cell // max(p.width for p in images))
    images = [p.resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST) for p in images]
    wide, high = max(p.width for p in images), max(p.height for p in images)
    columns = columns or min(len(images), max(1, round(len(images) ** 0.5 * 1.2)))
    font, gap, line = ImageFont.load_default(14), 12, 18
    texts = [wrap(c, font, wide) for c in captions] or [[] for _ in images]
    below = line * max(map(len, texts)) + (4 if captions else 0)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (wide + gap) + gap, rows * (high + below + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(images, texts)):
        x, y = gap + i % columns * (wide + gap), gap + i // columns * (high + below + gap)
        sheet.paste(picture, (x, y))
        for j, words in enumerate(lines):
            pen.text((x, y + high + 4 + j * line), words, fill=(60, 64, 70), font=font)
    return sheet
