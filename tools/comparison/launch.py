"""One launch of one library: started, watched, and ended with everything that it has started.

Rows are read from a file to which the program appends them as they are measured, so those of a launch that fails or
hangs are not lost; and a program that has written its last row and does not end is not waited for.
"""
import json
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field

LINGER_S = 3  # from the last row to the end of the process
LINGERED = "did not end after its last row"


@dataclass
class Outcome:
    status: str = "ok"  # or what went wrong, in words
    rows: list = field(default_factory=list)
    seconds: float = 0
    others: float = 0  # cores that other programs used meanwhile
    error: str = ""  # the end of what it wrote to standard error

    @property
    def ok(self):
        return self.status == "ok"


def read_rows(path):
    """The whole lines that are there, and whether the last row is."""
    rows, complete = [], False
    try:
        with open(path) as file:
            for line in file:
                if not line.endswith("\n"):
                    break
                row = json.loads(line)
                complete |= "end" in row
                if "end" not in row:
                    rows.append(row)
    except OSError:
        pass
    return rows, complete


def descendants(pid):
    """Processes below `pid`, with their start times: a number may belong to somebody else when it is used."""
    parents, starts = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_of(int(name))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(name))
                starts[int(name)] = fields[19]
    found, waiting = {}, [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found[child] = starts[child]
            waiting.append(child)
    return found


def stat_of(pid):
    """The fields of /proc/PID/stat from the state on; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def end(process):
    """Asks first, so that launchers clean up on other hosts, too; then kills what is left of it."""
    family = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        pass
    for pid, start in family.items():
        fields = stat_of(pid)
        if fields and fields[19] == start:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
    process.kill()
    process.wait()


def busy_seconds():
    """What all processors have worked since the machine started, with interrupts: networking is done in them."""
    with open("/proc/stat") as file:
        fields = [int(word) for word in file.readline().split()[1:8]]
    user, nice, system, _idle, _wait, irq, softirq = fields
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(patience_s, share=0.1, window_s=0.4):
    """Until others use less than `share` of one processor."""
    stop = time.monotonic() + patience_s
    while time.monotonic() < stop:
        before = busy_seconds()
        time.sleep(window_s)
        if busy_seconds() - before < share * window_s:
            return


def run(command, environment, rows_path, log_path, timeout_s):
    """Starts it and returns when nothing of it is left."""
    if os.path.exists(rows_path):
        os.remove(rows_path)
    outcome = Outcome()
    usage = os.times()
    begin, busy = time.monotonic(), busy_seconds()
    with open(log_path, "wb") as log:
        try:
            process = subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log, start_new_session=True)
        except OSError as error:
            return Outcome(status=f"cannot be started: {error.strerror}")
    try:
        outcome.status = watch(process, rows_path, begin + timeout_s, timeout_s)
    except BaseException:
        end(process)
        raise
    if process.poll() is None:
        end(process)
    outcome.seconds = time.monotonic() - begin
    spent = os.times()
    own = sum(spent[:4]) - sum(usage[:4])  # with the children's that have been waited for
    outcome.others = max(0.0, (busy_seconds() - busy - own) / outcome.seconds)
    outcome.rows, _ = read_rows(rows_path)
    if not outcome.ok:
        with open(log_path, errors="replace") as log:
            outcome.error = log.read()[-2000:]
    return outcome


def watch(process, rows_path, stop, timeout_s):
    """How it went, in words. Sleeps but for a look at the rows now and then."""
    poll = select.poll()
    handle = os.pidfd_open(process.pid)
    poll.register(handle, select.POLLIN)
    complete_since = None
    try:
        while time.monotonic() < stop:
            if poll.poll(500):
                status = process.wait()
                return "ok" if status == 0 else f"exited with status {status}"
            if complete_since is None and read_rows(rows_path)[1]:
                complete_since = time.monotonic()
            if complete_since is not None and time.monotonic() - complete_since > LINGER_S:
                return LINGERED
        return f"ended at the time limit of {timeout_s:.0f} s"
    finally:
        os.close(handle)
