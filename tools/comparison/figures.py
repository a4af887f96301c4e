"""What the times say: pure functions from launches to rows and summaries.

A launch is {"library", "setup", "ranks", "op", "type", "round", "status", "rows": [rows of `ringfold perf --json`]}.

- A library's time in a row is the median over rounds of its medians over iterations. Where rows differ by algorithm
  (Gloo's forms), each has its own median, and the least counts.
- ratio = time of the best peer / time of Ringfold: above 1, Ringfold is faster.
- One peer runs twice under two names. spread = the greater of its two times / the smaller: the noise of this row. As
  one pair may agree by luck, a row's noise is at least the median spread of its table (operation, type, set-up, ranks).
- win: ratio > noise; LOSS: ratio < 1 / noise; tie: between. "-": Ringfold or all peers are missing.
"""
import math
from collections import defaultdict
from statistics import median
from typing import NamedTuple


TWIN_MARK = "'"  # after the name of the one that runs twice


class Key(NamedTuple):
    setup: str
    ranks: int
    op: str
    type: str
    bytes: int
    in_place: bool

    @property
    def table(self):
        return self[:4]



def collect(launches, many_ways):
    """times[key][library][way] = list over rounds. `many_ways`: libraries whose algorithms are told apart."""
    times = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    algorithms = defaultdict(dict)
    for launch in launches:
        for row in launch["rows"]:
            key = Key(launch["setup"], launch["ranks"], row["op"], row["type"], row["bytes"], row["in_place"])
            library = launch["library"]
            way = row["algorithm"] if library.rstrip(TWIN_MARK) in many_ways else ""
            times[key][library][way].append((row["time_us_p50"], row["time_us_p99"]))
            algorithms[key, library][way] = row["algorithm"]
    return times, algorithms


def cell_of(ways, names):
    """The best way of one library in one row."""
    cells = []
    for way, pairs in ways.items():
        p50 = [pair[0] for pair in pairs]
        cells.append({"median_us": median(p50), "min_us": min(p50), "p99_us": median(pair[1] for pair in pairs),
                      "rounds": len(p50), "algorithm": names[way]})
    return min(cells, key=lambda cell: cell["median_us"])


def spread_of(cells):
    """The noise that the pair shows; None without a pair."""
    for name, cell in cells.items():
        twin = cells.get(name + TWIN_MARK)
        if twin:
            low, high = sorted((cell["median_us"], twin["median_us"]))
            return high / low if low > 0 else None
    return None


def verdict_of(ratio, noise):
    if ratio is None or noise is None:
        return "-"
    return "win" if ratio > noise else "LOSS" if ratio < 1 / noise else "tie"


def analyse(launches, many_ways=("gloo",)):
    """The table's rows, in its order: that of the launches, then out of place before in place, then by size."""
    times, algorithms = collect(launches, many_ways)
    order = {}
    for key in times:
        order.setdefault(key.table, len(order))
    rows = []
    for key in sorted(times, key=lambda k: (order[k.table], k.in_place, k.bytes)):
        cells = {library: cell_of(ways, algorithms[key, library]) for library, ways in times[key].items()}
        peers = {name: cell for name, cell in cells.items() if name != "ringfold" and not name.endswith(TWIN_MARK)}
        own = cells.get("ringfold")
        best = min(peers, key=lambda name: peers[name]["median_us"], default=None)
        row = {"op": key.op, "type": key.type, "ranks": key.ranks, "transport": key.setup, "bytes": key.bytes,
               "in_place": key.in_place, "cells": cells, "best": best, "ratio": None, "ratio_of_minima": None,
               "spread": spread_of(cells)}
        if own and best:
            row["ratio"] = peers[best]["median_us"] / max(own["median_us"], 1e-9)
            row["ratio_of_minima"] = min(c["min_us"] for c in peers.values()) / max(own["min_us"], 1e-9)
        rows.append((key, row))
    spreads = defaultdict(list)
    for key, row in rows:
        if row["spread"]:
            spreads[key.table].append(row["spread"])
    for key, row in rows:
        usual = median(spreads[key.table]) if spreads[key.table] else None
        known = [value for value in (row["spread"], usual) if value]
        row["noise"] = max(known) if known else None
        row["verdict"] = verdict_of(row["ratio"], row["noise"])
    return [row for _, row in rows]


def summarise(rows, target):
    """One line for each operation, type, set-up and number of ranks."""
    groups = defaultdict(list)
    for row in rows:
        if row["ratio"] is not None:
            groups[row["transport"], row["ranks"], row["op"], row["type"]].append(row)
    lines = []
    for (setup, ranks, op, kind), group in groups.items():
        ratios = [row["ratio"] for row in group]
        worst = min(group, key=lambda row: row["ratio"])
        lines.append({
            "op": op, "type": kind, "transport": setup, "ranks": ranks, "rows": len(group),
            "wins": sum(row["verdict"] == "win" for row in group),
            "ties": sum(row["verdict"] == "tie" for row in group),
            "losses": sum(row["verdict"] == "LOSS" for row in group),
            "share_at_target": sum(ratio >= target for ratio in ratios) / len(ratios),
            "geometric_mean": math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios)),
            "worst": {"ratio": worst["ratio"], "bytes": worst["bytes"], "in_place": worst["in_place"],
                      "best": worst["best"], "verdict": worst["verdict"]}})
    return lines


def wrong_elements(launches):
    """By library, where there are any."""
    wrong = defaultdict(int)
    for launch in launches:
        for row in launch["rows"]:
            wrong[launch["library"]] += row["wrong"]
    return {library: count for library, count in wrong.items() if count}


def hopeless(launches, times_slower):
    """Launches of the first round whose library was so many times slower than the best one, on average over the rows:
    {(library, group)}: further rounds would not change what they say."""
    by_group = defaultdict(lambda: defaultdict(dict))
    for launch in launches:
        for row in launch["rows"]:
            group = launch["setup"], launch["ranks"], launch["op"], launch["type"]
            cells = by_group[group][row["bytes"], row["in_place"]]
            library = launch["library"]
            cells[library] = min(cells.get(library, math.inf), row["time_us_p50"])
    found = {}
    for group, table in by_group.items():
        logs = defaultdict(list)
        for cells in table.values():
            best = min(cells.values())
            for library, time in cells.items():
                if best > 0:
                    logs[library].append(math.log(time / best))
        for library, values in logs.items():
            factor = math.exp(sum(values) / len(values))
            if factor > times_slower and library != "ringfold":
                found[library, group] = factor
    return found
