"""Which libraries there are and how each is started.

A set-up is a way in which ranks are placed and joined:
  shm     one host, shared memory
  tcp     one host, TCP over the loopback interface
  shaped  a network namespace per rank, links of a given rate (tools/netns)
  hier    two namespaces with half of the ranks each: shared memory inside, a shaped link between them
  verbs   one host, its first RDMA device: Ringfold over verbs, Open MPI over UCX
  ucx     the same with Ringfold over UCX
A library that takes no part in a set-up has no way to be started there.
"""
import os
import shutil
from dataclasses import dataclass
from typing import NamedTuple

PROCESSORS = sorted(os.sched_getaffinity(0))
CORES = len(PROCESSORS)
# Which processor each rank has, where that is not left to libraries and the system: neighbours in one block, or dealt
# out in turn.
PLACES = {"blocks": lambda rank, ranks: PROCESSORS[rank * min(CORES, ranks) // ranks],
          "dealt": lambda rank, ranks: PROCESSORS[rank % CORES]}
SETUPS = ("shm", "tcp", "shaped", "hier", "verbs", "ucx")
RDMA = ("verbs", "ucx")
RDMA_DEVICES = "/sys/class/infiniband"
NETWORK = "10.77.0.0/24"  # of tools/netns
SWITCH_ADDRESS = "10.77.0.254"


class Group(NamedTuple):
    """What one launch measures, over all sizes."""
    setup: str
    ranks: int
    op: str
    type: str

    def __str__(self):
        return f"{self.op} {self.type}, {self.ranks} ranks, {self.setup}"


def uses_namespaces(setup):
    return setup in ("shaped", "hier")


def uses_rdma(setup):
    return setup in RDMA


def rdma_device():
    """Its name, "" where there is none."""
    return min(os.listdir(RDMA_DEVICES), default="") if os.path.isdir(RDMA_DEVICES) else ""


def over_rdma():
    """What keeps UCX to that device. (The last: soft-RoCE needs it, others do not mind.)"""
    return {"UCX_TLS": "rc_v,ud_v,self", "UCX_NET_DEVICES": f"{rdma_device()}:1", "UCX_UD_VERBS_ETH_DGID_CHECK": "n"}


def hosts_of(group):
    """How many namespaces a group takes, and how many ranks are in each."""
    return (2, group.ranks // 2) if group.setup == "hier" else (group.ranks, 1)


@dataclass
class Site:
    """Where the programs are, and what is made for one comparison."""
    build: str  # the build folder
    tools: str  # this source tree's tools/
    temp: str   # a folder for this comparison; gone afterwards
    memory: str = "ringfold"  # where Ringfold's buffers come from (perf --memory); peers' are ordinary memory
    prefix: str = "rfcmp"  # of the namespaces' names
    place: str = ""        # one of PLACES

    @property
    def ringfold(self):
        return os.path.join(self.build, "tools", "ringfold")

    @property
    def limits(self):
        return os.path.join(self.build, "bench", "limits", "limits")

    def peer(self, name):
        return os.path.join(self.build, "bench", "peers", name)

    def names(self, group):
        return [f"{self.prefix}{i}" for i in range(hosts_of(group)[0])]

    def in_switch(self, command):
        return ["ip", "netns", "exec", f"{self.prefix}-switch", *command]

    def agent(self):
        """tools/netns as a program of one word, which is what MPICH takes for ssh."""
        path = os.path.join(self.temp, "agent")
        if not os.path.exists(path):
            with open(path, "w") as file:
                file.write(f'#!/bin/sh\nexec "{self.tools}/netns" ssh "$@"\n')
            os.chmod(path, 0o755)
        return path


    def pins(self, group):
        return bool(self.place) and not uses_namespaces(group.setup)

    def pinned(self, group, command):
        """The command of a rank, on its processor if `place` says which: the same for all libraries."""
        if not self.pins(group):
            return command
        path = os.path.join(self.temp, f"pin-{group.ranks}")
        if not os.path.exists(path):
            processors = " ".join(str(PLACES[self.place](rank, group.ranks)) for rank in range(group.ranks))
            with open(path, "w") as file:
                file.write(f"""#!/bin/sh
processors="{processors}"
rank=${{OMPI_COMM_WORLD_RANK:-${{PMI_RANK:-$RINGFOLD_RANK}}}}
exec taskset -c "$(echo "$processors" | cut -d" " -f$((rank + 1)))" "$@"
""")
            os.chmod(path, 0o755)
        return [path, *command]


class Start(NamedTuple):
    command: list
    environment: dict


class Library:
    """One of those compared. `words` are what the measuring program is told: the operation and its options."""
    name = ""
    setups = ()
    many_ways = False  # rows of one size differ by algorithm, and the best one counts

    def missing(self, site):
        """What it lacks on this machine; "" when it can be started."""
        raise NotImplementedError

    def start(self, site, group, words):
        raise NotImplementedError


def lacks(*programs):
    for program in programs:
        if not (os.access(program, os.X_OK) if os.sep in program else shutil.which(program)):
            return f"no {program}"
    return ""


class Ringfold(Library):
    name = "ringfold"
    setups = SETUPS

    def missing(self, site):
        return lacks(site.ringfold)

    def start(self, site, group, words):
        words = [*words, "--memory", site.memory]
        if uses_namespaces(group.setup):
            return in_namespaces(site, group, [site.ringfold, "perf", *words])
        variables = over_rdma() if group.setup == "ucx" else {}
        if site.pins(group):
            return Start([site.ringfold, "run", "-n", str(group.ranks), "--no-bind", "--no-prefix", "--",
                          *site.pinned(group, [site.ringfold, "perf", *words])],
                         {"RINGFOLD_TRANSPORT": group.setup, **variables})
        return Start([site.ringfold, "perf", *words, "--ranks", str(group.ranks), "--transport", group.setup], variables)


def in_namespaces(site, group, command):
    """`ringfold run` from the switch's namespace, for any program that takes its rank from RINGFOLD_RANK."""
    per_host = hosts_of(group)[1]
    hosts = ",".join(f"{name}:{per_host}" for name in site.names(group))
    start = [site.ringfold, "run", "-n", str(group.ranks), "--hosts", hosts, "--address", SWITCH_ADDRESS, "--no-prefix",
             "--", *command]
    return Start(site.in_switch(start), {"RINGFOLD_SSH": site.agent()})


class Gloo(Library):
    name = "gloo"
    setups = ("tcp", "shaped", "hier")
    many_ways = True

    def missing(self, site):
        return lacks(site.peer("peer_gloo")) or lacks(site.ringfold)

    def start(self, site, group, words):
        store = os.path.join(site.temp, "store")
        shutil.rmtree(store, ignore_errors=True)
        os.mkdir(store)
        interface = "eth0" if uses_namespaces(group.setup) else "lo"
        command = [site.peer("peer_gloo"), *words, "--transport", group.setup, "--store", store,
                   "--interface", interface]
        if uses_namespaces(group.setup):
            return in_namespaces(site, group, command)
        free = ["--no-bind"] if site.pins(group) else []
        return Start([site.ringfold, "run", "-n", str(group.ranks), *free, "--no-prefix", "--",
                      *site.pinned(group, command)], {})


class OpenMpi(Library):
    """Ranks are bound to cores where there is one for each; otherwise they must yield, or they wait whole turns of the
    scheduler for each other."""
    name = "ompi"
    setups = ("shm", "tcp", "shaped", "hier")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def missing(self, site):
        return lacks(site.peer("peer_openmpi"), "mpirun.openmpi")

    def transport(self, setup):
        inside = ["--mca", "pml", "ob1", "--mca", "btl"]
        return {"shm": [*inside, "vader,self"],
                "tcp": [*inside, "tcp,self", "--mca", "btl_tcp_if_include", "lo"],
                "shaped": [*inside, "tcp,self", "--mca", "btl_tcp_if_include", NETWORK],
                "hier": [*inside, "vader,tcp,self", "--mca", "btl_tcp_if_include", NETWORK]}[setup]

    def start(self, site, group, words):
        program = site.pinned(group, [site.peer("peer_openmpi"), *words, "--transport", group.setup])
        command = ["mpirun.openmpi", "-np", str(group.ranks)]
        if group.ranks <= CORES and not uses_namespaces(group.setup):
            command += ["--bind-to", "none" if site.pins(group) else "core"]
        else:
            command += ["--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
        command += self.transport(group.setup)
        if not uses_namespaces(group.setup):
            return Start([*command, *program], self.root)
        per_host = hosts_of(group)[1]
        command += ["--host", ",".join(f"{name}:{per_host}" for name in site.names(group)),
                    "--mca", "plm_rsh_agent", site.agent(), "--mca", "oob_tcp_if_include", NETWORK]
        return Start(site.in_switch([*command, *program]), self.root)


class OpenMpiUcx(OpenMpi):
    """Debian's configuration keeps Open MPI from UCX; the two "any" let it."""
    name = "ompi-ucx"
    setups = SETUPS

    def transport(self, setup):
        ucx = ["--mca", "pml", "ucx", "--mca", "opal_common_ucx_tls", "any",
               "--mca", "opal_common_ucx_devices", "any"]
        variables = {"shm": {"UCX_TLS": "posix,cma,self"},
                     "tcp": {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"},
                     "shaped": {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"},
                     "hier": {"UCX_TLS": "posix,cma,tcp,self", "UCX_NET_DEVICES": "eth0"},
                     "verbs": over_rdma(), "ucx": over_rdma()}[setup]
        for name, value in variables.items():
            ucx += ["-x", f"{name}={value}"]
        return ucx


class Mpich(Library):
    name = "mpich"
    setups = ("shm", "tcp", "shaped", "hier")

    def missing(self, site):
        return lacks(site.peer("peer_mpich"), "mpirun.mpich")

    def start(self, site, group, words):
        program = site.pinned(group, [site.peer("peer_mpich"), *words, "--transport", group.setup])
        command = ["mpirun.mpich", "-np", str(group.ranks)]
        if uses_namespaces(group.setup):
            command += ["-launcher", "ssh", "-launcher-exec", site.agent(), "-iface", "bridge", "-hosts",
                        ",".join(site.names(group)), "-ppn", str(hosts_of(group)[1]),
                        "-genv", "UCX_TLS", "tcp,self", "-genv", "UCX_NET_DEVICES", "eth0"]
            return Start(site.in_switch([*command, *program]), {})
        if group.ranks <= CORES and not site.pins(group):
            command += ["-bind-to", "core"]
        tcp = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}
        return Start([*command, *program], tcp if group.setup == "tcp" else {})


RINGFOLD = Ringfold()
PEERS = {peer.name: peer for peer in (OpenMpi(), OpenMpiUcx(), Mpich(), Gloo())}

# The peer that is usually the best one, which therefore runs twice: the ratio of its two times is what a ratio may be
# without meaning anything.
TWIN_BY_SETUP = {"shm": ("ompi-ucx", "ompi", "mpich"), "tcp": ("ompi", "ompi-ucx", "gloo", "mpich"),
                 "shaped": ("gloo", "ompi", "ompi-ucx", "mpich"), "hier": ("ompi", "ompi-ucx", "gloo", "mpich"),
                 "verbs": ("ompi-ucx",), "ucx": ("ompi-ucx",)}


def twin_for(setup, names, wanted):
    """Which of `names` runs twice; Ringfold where no peer does."""
    order = (wanted,) if wanted else TWIN_BY_SETUP[setup]
    return next((name for name in order if name in names), RINGFOLD.name)
