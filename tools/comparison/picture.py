"""Time against size, both axes logarithmic, as an SVG picture: a panel for each operation, type, number of ranks and
set-up, a curve for each library. In place where there is that form (training reduces in place), else out of place."""
import math
from html import escape

from .figures import TWIN_MARK
from .report import names_in, size_text

# Eight colours that people with any kind of colour vision can tell apart; Ringfold has the first, and a wider line.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b3a8e", "#444444")
WIDTH, HEIGHT, GAP_X, GAP_Y, LEFT, TOP, LEGEND = 330, 240, 86, 92, 74, 92, 150
INK, FAINT, GRID = "#1d2733", "#4a5866", "#dde2e7"


def panels_of(rows):
    """[(title, {library: [(bytes, us)]})], without those that have only one size."""
    tables = {}
    for row in rows:
        tables.setdefault((row["transport"], row["ranks"], row["op"], row["type"]), []).append(row)
    panels = []
    for (setup, ranks, op, kind), table in tables.items():
        in_place = any(row["in_place"] and row["ratio"] for row in table)
        curves = {}
        for row in table:
            if row["in_place"] == in_place and row["bytes"] > 0:
                for name, cell in row["cells"].items():
                    if not name.endswith(TWIN_MARK) and cell["median_us"] > 0:
                        curves.setdefault(name, []).append((row["bytes"], cell["median_us"]))
        if any(len(points) > 1 for points in curves.values()):
            place = ", in place" if in_place else ""
            panels.append((f"{op} {kind}{place}, {ranks} ranks, {setup}", curves))
    return panels


def text(x, y, what, style):
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(what)}</text>\n'


def line(x1, y1, x2, y2, colour, width=1.0):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"/>\n')


def span(values, base):
    """The whole powers that hold all values."""
    low = math.floor(math.log(min(values), base) + 1e-9)
    return low, max(low + 1, math.ceil(math.log(max(values), base) - 1e-9))


def draw_panel(title, curves, left, top, colours):
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    (x_low, x_high), (y_low, y_high) = span(xs, 2), span(ys, 10)
    bottom = top + HEIGHT

    def at(x, y):
        return (left + WIDTH * (math.log2(x) - x_low) / (x_high - x_low),
                top + HEIGHT * (1 - (math.log10(y) - y_low) / (y_high - y_low)))

    out = text(left, top - 10, title, f'font-size="12.5" font-weight="bold" fill="{INK}"')
    for power in range(y_low, y_high + 1):
        y = at(2.0 ** x_low, 10.0 ** power)[1]
        out += line(left, y, left + WIDTH, y, GRID)
        out += text(left - 7, y + 4, f"{10.0 ** power:g}", f'font-size="10.5" fill="{FAINT}" text-anchor="end"')
    step = max(1, math.ceil((x_high - x_low) / 7))
    for power in range(x_low, x_high + 1, step):
        x = at(2.0 ** power, 10.0 ** y_low)[0]
        out += line(x, top, x, bottom, GRID)
        out += text(x, bottom + 16, size_text(1 << power), f'font-size="10.5" fill="{FAINT}" text-anchor="middle"')
    out += line(left, top, left, bottom, FAINT, 1.2) + line(left, bottom, left + WIDTH, bottom, FAINT, 1.2)
    out += text(left + WIDTH / 2, bottom + 33, "bytes", f'font-size="11" fill="{FAINT}" text-anchor="middle"')
    out += (f'<text transform="translate({left - 48:.1f} {top + HEIGHT / 2:.1f}) rotate(-90)" font-size="11" '
            f'fill="{FAINT}" text-anchor="middle">us (median)</text>\n')
    for name in sorted(curves, key=lambda n: n == "ringfold"):  # Ringfold last, on top
        points = [at(x, y) for x, y in sorted(curves[name])]
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        width = 2.6 if name == "ringfold" else 1.6
        out += (f'<path d="{path}" fill="none" stroke="{colours[name]}" stroke-width="{width}" '
                f'stroke-linejoin="round"/>\n')
        for x, y in points:
            out += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{width:.1f}" fill="{colours[name]}"/>\n'
    return out


def picture(rows, title, subtitle):
    panels = panels_of(rows)
    names = [name for name in names_in(rows) if not name.endswith(TWIN_MARK)]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    columns = max(1, min(3, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    width = LEFT + columns * WIDTH + (columns - 1) * GAP_X + LEGEND
    height = TOP + lines * HEIGHT + (lines - 1) * GAP_Y + 60
    out = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
           f'font-family="Helvetica, Arial, sans-serif">\n<rect width="100%" height="100%" fill="#ffffff"/>\n')
    out += text(LEFT, 30, title, f'font-size="17" font-weight="bold" fill="{INK}"')
    out += text(LEFT, 50, subtitle, f'font-size="12" fill="{FAINT}"')
    for number, (head, curves) in enumerate(panels):
        left = LEFT + (number % columns) * (WIDTH + GAP_X)
        top = TOP + (number // columns) * (HEIGHT + GAP_Y)
        out += draw_panel(head, curves, left, top, colours)
    for number, name in enumerate(names):
        x, y = LEFT + columns * WIDTH + (columns - 1) * GAP_X + 20, TOP + 12 + 20 * number
        out += line(x, y, x + 24, y, colours[name], 2.6 if name == "ringfold" else 1.6)
        out += text(x + 32, y + 4, name, f'font-size="12" fill="{INK}"')
    return out + "</svg>\n"
