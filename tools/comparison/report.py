"""Tables for people, and files for programs."""
import csv
import json
from itertools import groupby
from statistics import median

from .figures import TWIN_MARK

UNITS = "KMGT"


def size_text(size):
    """8, 64K, 1M."""
    unit = ""
    for name in UNITS:
        if size < 1024 or size % 1024:
            break
        size, unit = size // 1024, name
    return f"{size}{unit}"


def parse_size(text):
    """The other way; None when it is no size."""
    digits = text.rstrip("Bb")
    shift = 0
    if digits and digits[-1].upper() in UNITS:
        shift = 10 * (UNITS.index(digits[-1].upper()) + 1)
        digits = digits[:-1]
    return int(digits) << shift if digits.isdigit() else None


def figure(value):
    """Four digits or so."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.{1 if value >= 100 else 2 if value >= 10 else 3}f}"


def ratio_text(value):
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def names_in(rows):
    """Ringfold first; pairs are side by side."""
    names = {name for row in rows for name in row["cells"]}
    return sorted(names, key=lambda name: (name.rstrip(TWIN_MARK) != "ringfold", name))


def print_limits(limits, write):
    if not limits:
        return
    write("# limits, measured in this run\n")
    for entry in limits:
        write(f"#   {entry['name']:<58}{figure(entry['value']):>9} {entry['unit']}\n")
    write("\n")


def print_rows(rows, write, settings):
    """A table for each set-up, number of ranks, operation and type."""
    how = "Ringfold's buffers from " + ("malloc" if settings.get("memory") == "malloc" else "ringfold::allocate")
    if settings.get("place"):
        how += f"; ranks placed: {settings['place']}"
    for head, table in groupby(rows, key=lambda row: (row["op"], row["type"], row["ranks"], row["transport"])):
        table = list(table)
        names = names_in(table)
        write("# {} {}, {} ranks, {}: median time in us; {}\n".format(*head, how))
        write(f"{'size':>8} {'place':>5}" + "".join(f"{name:>11}" for name in names) +
              f"  {'best peer':<24}{'ratio':>7}{'A/A':>7}{'noise':>7}  verdict\n")
        for row in table:
            cells = row["cells"]
            times = (cells[name]["median_us"] if name in cells else None for name in names)
            way = cells[row["best"]]["algorithm"] if row["best"] else "-"
            best = (row["best"] or "-") + ("" if way == "-" else f" {way}")
            write(f"{size_text(row['bytes']):>8} {'in' if row['in_place'] else 'out':>5}" +
                  "".join(f"{figure(time):>11}" for time in times) +
                  f"  {best:<24}" + "".join(f"{ratio_text(row[name]):>7}" for name in ("ratio", "spread", "noise")) +
                  f"  {row['verdict']}\n")
        write("\n")


def print_summary(summary, target, write):
    write("# ratio: time of the best peer / time of Ringfold; above 1, Ringfold is faster. "
          "win and LOSS: beyond the noise\n")
    write(f"# {'operation':<16}{'type':<6}{'ranks':>5}  {'set-up':<8}{'rows':>5}{'win':>5}{'tie':>5}{'LOSS':>6}"
          f"{f'>= {target:g}x':>9}{'geo. mean':>11}   worst row\n")
    for line in summary:
        worst = line["worst"]
        write(f"  {line['op']:<16}{line['type']:<6}{line['ranks']:>5}  {line['transport']:<8}{line['rows']:>5}"
              f"{line['wins']:>5}{line['ties']:>5}{line['losses']:>6}{100 * line['share_at_target']:>7.0f} %"
              f"{line['geometric_mean']:>11.2f}   {worst['ratio']:.2f} against {worst['best']} at "
              f"{size_text(worst['bytes'])} {'in' if worst['in_place'] else 'out of'} place ({worst['verdict']})\n")


def print_notes(launches, wrong, write):
    """What one must know to believe the table."""
    bad = {}
    for launch in launches:
        if launch["status"] != "ok":
            bad.setdefault((launch["library"], launch["status"]), []).append(launch)
    for (library, status), group in bad.items():
        first = group[0]
        write(f"# {library}: {status} ({len(group)} of its launches; the first: {first['op']} {first['type']}, "
              f"{first['ranks']} ranks, {first['setup']})\n")
    others = [launch["others"] for launch in launches if launch["setup"] in ("shm", "tcp")]
    if others:
        write(f"# other programs used {median(others):.2f} cores during a launch (median; "
              f"at most {max(others):.2f})\n")
    for library, count in wrong.items():
        write(f"# {library}: {count} WRONG elements\n")
    if not wrong:
        write("# wrong elements: 0\n")


def markdown(rows):
    """Ratios as tables of Markdown, one for each set-up: a line for each operation and number of ranks, a column for each
    size, out of place / in place where there are both; bold: a win, italic: a loss."""
    mark = {"win": "**", "LOSS": "_"}

    def cell_text(cell):
        return " / ".join(f"{mark.get(row['verdict'], '')}{ratio_text(row['ratio'])}{mark.get(row['verdict'], '')}"
                          for row in sorted(cell, key=lambda row: row["in_place"]) if row["ratio"] is not None)

    tables = {}
    for row in rows:
        kind = "" if row["type"] == "f32" else f" {row['type']}"
        line = tables.setdefault(row["transport"], {}).setdefault(f"{row['op']}{kind}, {row['ranks']}", {})
        line.setdefault(row["bytes"], []).append(row)
    text = ""
    for setup, lines in tables.items():
        # All lines have the same sizes, but that a block for each rank has an element at least: so ends are aligned.
        sizes = max((sorted(line) for line in lines.values()), key=lambda sizes: (len(sizes), -sizes[0]))
        text += f"| {setup} | " + " | ".join(map(size_text, sizes)) + " |\n|---" + "|---" * len(sizes) + "|\n"
        for name, line in lines.items():
            cells = [cell_text(line[size]) for size in sorted(line)]
            gap = [""] * (len(sizes) - len(cells))
            text += f"| {name} | " + " | ".join(cells + gap if 0 in line else gap + cells) + " |\n"
        text += "\n"
    return text


def write_csv(path, rows):
    """One line for each row and library."""
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        of_row = ("op", "type", "ranks", "transport", "bytes", "in_place")
        of_cell = ("algorithm", "rounds", "median_us", "min_us", "p99_us")
        of_all = ("best", "ratio", "spread", "noise", "verdict")
        out.writerow([*of_row, "library", *of_cell, *of_all])
        for row in rows:
            for library, cell in row["cells"].items():
                out.writerow([*(row[name] for name in of_row), library, *(cell[name] for name in of_cell),
                              *(row[name] for name in of_all)])


def write_json(path, result):
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
