"""The order in which things run: round after round, in each all libraries one after another on the same operation, and
in another order the next time. So what the machine does meanwhile falls on all of them."""
import json
import os
import signal
import subprocess
import sys
import time

from . import figures, launch
from .figures import TWIN_MARK
from .setups import RINGFOLD, Group, hosts_of, twin_for, uses_namespaces

# Types other than the first are for what computes: moving bytes does not depend on them.
REDUCING = ("all_reduce", "reduce_scatter")


def groups_of(options):
    """All that is to be measured, those that share namespaces together."""
    groups = []
    for setup in options.transports:
        for ranks in options.ranks:
            if setup == "hier" and (ranks % 2 or ranks < 4):
                continue
            for op in options.ops:
                for kind in options.types if op in REDUCING else options.types[:1]:
                    groups.append(Group(setup, ranks, op, kind))
    return groups


class Progress:
    """One line on standard error, with the time left; gone when it is done."""

    def __init__(self, total):
        self.total, self.done, self.begin, self.seconds = total, 0, time.monotonic(), {}
        self.live = sys.stderr.isatty()

    def show(self, round_number, library, group):
        left = ""
        if self.done:
            left = f", {words_of((time.monotonic() - self.begin) / self.done * (self.total - self.done))} left"
        text = f"round {round_number + 1}, {self.done + 1} of {self.total}{left}: {library}: {group}"
        sys.stderr.write(f"\r\033[K{text[:150]}" if self.live else f"{text}\n")
        sys.stderr.flush()

    def say(self, text):
        sys.stderr.write(("\r\033[K" if self.live else "") + f"compare: {text}\n")

    def close(self):
        if self.live:
            sys.stderr.write("\r\033[K")


def words_of(seconds):
    minutes = int(seconds + 0.5) // 60
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


class Namespaces:
    """Those of one group, up while they are needed: `with` takes them down however it is left."""

    def __init__(self, site, group, rate):
        self.site, self.count, self.rate = site, hosts_of(group)[0], rate
        self.needed = uses_namespaces(group.setup)

    def netns(self, *words):
        return subprocess.run([os.path.join(self.site.tools, "netns"), *words], stdin=subprocess.DEVNULL,
                              env={**os.environ, "RINGFOLD_NETNS": self.site.prefix}).returncode

    def __enter__(self):
        if self.needed:
            self.down()  # of a comparison that was killed
            try:
                if self.netns("up", str(self.count), self.rate) != 0:
                    raise OSError("the namespaces did not come up")
            except BaseException:
                self.down()
                raise
        return self

    def __exit__(self, *_):
        if self.needed:
            self.down()

    def down(self):
        """To its end, however often somebody presses Ctrl-C."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.netns("down")
        finally:
            signal.signal(signal.SIGINT, before)

    def renew(self):
        self.__enter__()


class Rounds:
    """Runs the launches of a comparison and keeps what they gave in `launches`, also when it is interrupted."""

    def __init__(self, site, options, peers):
        self.site, self.options, self.peers = site, options, peers
        self.launches, self.limits = [], []
        self.left_out = {}  # (library, group) -> why it runs no more
        self.failures = {}  # the same -> number
        self.groups = groups_of(options)

    def libraries(self, setup):
        """Their names in this set-up, with the one that runs twice twice."""
        names = [peer.name for peer in self.peers if setup in peer.setups]
        return [RINGFOLD.name, *names, twin_for(setup, names, self.options.twin) + TWIN_MARK]

    def words(self, group, rows_path):
        o = self.options
        return [group.op, "--type", group.type, "--min", o.min, "--max", o.max, "--factor", str(o.factor), "--budget",
                str(o.budget), "--rows", rows_path, "--quiet", *(["--fresh"] if o.fresh else [])]

    def time_limit(self, group):
        """Generous: for a library ten times slower than half a GB/s or the links, and that in a few forms."""
        if self.options.timeout:
            return self.options.timeout
        rate = 0.05e9
        if uses_namespaces(group.setup):
            rate = min(rate, bytes_per_second(self.options.rate) / 10)
        seconds = 30.0
        for size in self.options.sizes():
            moved = min(32 * size, max(64 << 20, 2 * size)) if group.op == "stream" else 4 * size
            seconds += 10 * self.options.budget + 0.5 + 8 * moved / rate
        return seconds

    def run(self):
        total = self.options.rounds * sum(len(self.libraries(group.setup)) for group in self.groups)
        progress = Progress(total)
        try:
            for number in range(self.options.rounds):
                self.run_round(number, progress)
                if number == 0 and self.options.drop:
                    self.leave_out_hopeless(progress)
        finally:
            progress.close()

    def leave_out_hopeless(self, progress):
        for (library, words), factor in figures.hopeless(self.launches, self.options.drop).items():
            group = Group(*words)
            progress.say(f"{library}: {group}: {factor:.0f} times slower than the best: one round is enough")
            self.left_out[library, group] = "slow"

    def run_round(self, number, progress):
        at = 0
        while at < len(self.groups):
            # Groups on the same namespaces share them for the round.
            first = self.groups[at]
            same = [g for g in self.groups[at:] if g[:2] == first[:2]]
            at += len(same)
            with Namespaces(self.site, first, self.options.rate) as namespaces:
                if number == 0 and namespaces.needed and self.options.limits:
                    self.measure_link(first)
                for group in same:
                    self.run_group(number, group, namespaces, progress)

    def run_group(self, number, group, namespaces, progress):
        names = self.libraries(group.setup)
        turn = number % len(names)
        for library in names[turn:] + names[:turn]:
            if (library, group) in self.left_out:
                progress.done += 1
                continue
            if self.options.wait_quiet:
                launch.wait_until_quiet(self.options.wait_quiet)
            progress.show(number, library, group)
            outcome = self.launch(library, group)
            progress.done += 1
            self.launches.append({"library": library, **group._asdict(), "round": number, "status": outcome.status,
                                  "seconds": round(outcome.seconds, 3), "others": round(outcome.others, 3),
                                  "error": outcome.error, "rows": outcome.rows})
            if outcome.ok:
                continue
            progress.say(f"{library}: {group}: {outcome.status}; {len(outcome.rows)} rows kept")
            if namespaces.needed:
                namespaces.renew()  # with what may be left in them
            if outcome.status == launch.LINGERED:
                continue  # its rows are good
            for line in outcome.error.strip().splitlines()[-3:]:
                progress.say(f"  {line}")
            failures = self.failures[library, group] = self.failures.get((library, group), 0) + 1
            if failures == 2 and library != RINGFOLD.name:
                progress.say(f"{library}: {group}: left out from now on")
                self.left_out[library, group] = outcome.status

    def launch(self, library, group):
        name = library.rstrip(TWIN_MARK)
        chosen = next(l for l in (RINGFOLD, *self.peers) if l.name == name)
        rows_path, log_path = os.path.join(self.site.temp, "rows"), os.path.join(self.site.temp, "log")
        start = chosen.start(self.site, group, self.words(group, rows_path))
        environment = {"RINGFOLD_NETNS": self.site.prefix, **start.environment}
        return launch.run(start.command, environment, rows_path, log_path, self.time_limit(group))

    # ---- physical limits ----

    def measure_host(self):
        self.limits += self.figures_of([self.site.limits, "--json"])

    def measure_link(self, group):
        """Between the first two namespaces."""
        names, port = self.site.names(group), "5201"
        if any(f["link"] == group.setup for f in self.limits if "link" in f):
            return
        enter = ["ip", "netns", "exec"]
        server = subprocess.Popen([*enter, names[0], self.site.limits, "serve", "10.77.0.1", port],
                                  stdin=subprocess.DEVNULL)
        try:
            found = self.figures_of([*enter, names[1], self.site.limits, "--json", "reach", "10.77.0.1", port, "1"])
        finally:
            server.kill()
            server.wait()
        self.limits += [{**entry, "name": f"{entry['name']}, {group.setup} at {self.options.rate}", "link": group.setup}
                        for entry in found]

    def figures_of(self, command):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
            return json.loads(done.stdout) if done.returncode == 0 else []
        except (OSError, subprocess.TimeoutExpired, ValueError):
            return []


def bytes_per_second(rate):
    """"100mbit" in bytes a second; "none": as fast as it goes."""
    for unit, factor in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate.endswith(unit):
            return float(rate[: -len(unit)]) * factor / 8
    return 1e9
