"""The memory of one GPU as a picture: one bar of parts, up to what is usable.  SVG, written here, of text and rectangles alone."""

from pathlib import Path
from xml.sax.saxutils import escape

from vitscale.errors import RecipeError
from vitscale.plan.answer import Plan
from vitscale.plan.report import MEMORY_PARTS, size

# Okabe & Ito's palette (2008), told apart by the colour-blind too
COLOURS = {
    "weights": "#0072B2", "gradients": "#56B4E9", "optimizer": "#009E73", "ema": "#8FBC8F", "activations": "#E69F00",
    "attention": "#D55E00", "communication": "#CC79A7", "loader": "#F0E442", "context": "#999999",
}
WIDTH, LEFT, BAR_TOP, BAR_HEIGHT, LINE = 860, 30, 84, 54, 26


def write_figure(plan: Plan, path: Path) -> None:
    """Raises RecipeError when it cannot be written, or its name asks for another format."""
    if path.suffix.lower() != ".svg":
        raise RecipeError(f"--figure {path}: draws SVG; name a file that ends in .svg")
    try:
        path.write_text(draw(plan), encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"--figure {path}: cannot be written ({error.strerror})") from None


def draw(plan: Plan) -> str:
    """The SVG's text."""
    memory, hardware = plan.memory, plan.hardware
    parts = [(name, meant, getattr(memory, name)) for name, meant in MEMORY_PARTS.items() if getattr(memory, name)]
    span = max(memory.peak_bytes, memory.usable_bytes or 0, hardware.memory_bytes or 0)
    scale = (WIDTH - 2 * LEFT) / span
    height = BAR_TOP + BAR_HEIGHT + 52 + LINE * ((len(parts) + 1) // 2)
    title = f"{plan.recipe} on {hardware.nodes} x {hardware.gpus_per_node} x {hardware.name}"
    words = f"{plan.batch.micro_batch:,} images at a time; at the peak of a step {size(memory.peak_bytes)}"
    if memory.usable_bytes:
        words += f" of {size(memory.usable_bytes)} usable" + ("" if memory.fits else ": does not fit")
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(LEFT, 32, title, 'font-size="19" font-weight="bold"'),
        _text(LEFT, 56, words, 'fill="#555"' if memory.fits is not False else 'fill="#B00020" font-weight="bold"'),
        f'<rect x="{LEFT}" y="{BAR_TOP}" width="{span * scale:.1f}" height="{BAR_HEIGHT}" fill="#f3f3f3" stroke="#ccc"/>',
    ]
    at = float(LEFT)
    for name, meant, num_bytes in parts:
        wide = num_bytes * scale
        out.append(f'<rect x="{at:.1f}" y="{BAR_TOP}" width="{max(wide, 0.5):.1f}" height="{BAR_HEIGHT}" fill="{COLOURS[name]}">'
                   f'<title>{escape(meant)}: {size(num_bytes)}</title></rect>')
        if wide > 70:
            out.append(_text(at + wide / 2, BAR_TOP + BAR_HEIGHT / 2 + 5, size(num_bytes), 'text-anchor="middle" fill="#000"'))
        at += wide
    if memory.usable_bytes:
        mark = LEFT + memory.usable_bytes * scale
        out.append(f'<line x1="{mark:.1f}" x2="{mark:.1f}" y1="{BAR_TOP - 8}" y2="{BAR_TOP + BAR_HEIGHT + 8}" stroke="#B00020" '
                   'stroke-width="2" stroke-dasharray="5 3"/>')
        out.append(_text(mark, BAR_TOP + BAR_HEIGHT + 24, f"usable {size(memory.usable_bytes)}", 'text-anchor="end" fill="#B00020"'))
    for number, (name, meant, num_bytes) in enumerate(parts):
        x, y = LEFT + number % 2 * (WIDTH - 2 * LEFT) // 2, BAR_TOP + BAR_HEIGHT + 52 + LINE * (number // 2)
        out.append(f'<rect x="{x}" y="{y - 12}" width="14" height="14" fill="{COLOURS[name]}"/>')
        out.append(_text(x + 22, y, f"{meant}: {size(num_bytes)} ({num_bytes / memory.peak_bytes:.1%})"))
    return "\n".join([*out, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
