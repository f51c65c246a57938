"""A real SLURM of two nodes on this machine, in a folder of its own, for tests.

    python tests/debian.py slurm                     Debian packages; as root
    python tests/slurm/cluster.py start FOLDER       and then: export SLURM_CONF=FOLDER/etc/slurm.conf
    python tests/slurm/cluster.py stop FOLDER

With accounting, two GPUs that are only counted, job arrays, and two partitions beside the default one: `urgent`, which
preempts it, and `narrow`, which has one job on each node at a time.
Everything lies in the folder and listens on free ports of 127.0.0.1; what is stopped is found by its process id.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("n0", "n1")
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", *(f"slurmd-{node}" for node in NODES))

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port[slurmctld]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1,sched_interval=3,bf_interval=3
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port[slurmdbd]}
AccountingStoragePass={folder}/run/munge.socket
MaxArraySize=401
KillWait=30
MinJobAge=5
SlurmdTimeout=15
ReturnToService=2
MailProg=/bin/true
GresTypes=gpu
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={port[slurmd-n0]} CPUs=2 RealMemory=8000 Gres=gpu:1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port[slurmd-n1]} CPUs=2 RealMemory=8000 Gres=gpu:1
PartitionName=gpu Nodes=n[0-1] Default=YES MaxTime=INFINITE PriorityTier=1 DefMemPerCPU=1900 State=UP
PartitionName=narrow Nodes=n[0-1] MaxTime=INFINITE PriorityTier=1 DefMemPerCPU=1900 MaxCPUsPerNode=1 State=UP
PartitionName=urgent Nodes=n[0-1] MaxTime=INFINITE PriorityTier=10 DefMemPerCPU=1900 State=UP
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port[slurmdbd]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port[mariadbd]}
StorageUser=slurm
StoragePass=x
StorageLoc=slurm_acct_db
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
"""
DATABASE = "create database slurm_acct_db; grant all on slurm_acct_db.* to slurm@'127.0.0.1' identified by 'x';"


class ClusterError(RuntimeError):
    """The cluster cannot be started; the message says why."""


class Cluster:
    """A cluster in a folder; its path must be short, for sockets lie in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons, and wait until both nodes are idle.

        Raises:
            ClusterError: one of them does not come up; the message names its log.
        """
        for name in ("etc", "run", "log", "state", "database"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        ports, host = _free_ports(), socket.gethostname().partition(".")[0]
        for name, text in (("slurm.conf", SLURM_CONF), ("slurmdbd.conf", SLURMDBD_CONF)):
            (self.folder / "etc" / name).write_text(text.format(folder=self.folder, host=host, port=ports))
        (self.folder / "etc" / "slurmdbd.conf").chmod(0o600)
        (self.folder / "etc" / "gres.conf").write_text("NodeName=n[0-1] Name=gpu File=/dev/null\n")
        self._start_munge()
        self._start_database(ports["mariadbd"])
        self.start_daemon("slurmdbd")
        self._wait("slurmdbd", lambda: self.run("sacctmgr", "-n", "show", "cluster").returncode == 0)
        self._wait(
            "slurmdbd",
            lambda: (
                "lab" in self.run("sacctmgr", "-n", "show", "cluster").stdout
                or self.run("sacctmgr", "-i", "add", "cluster", "lab").returncode == 0
            ),
        )
        self.start_daemon("slurmctld")
        self._wait("slurmctld", lambda: self.run("scontrol", "ping").returncode == 0)
        for node in NODES:
            self.start_daemon(f"slurmd-{node}")
        self._wait("slurmctld", self.idle, 60)

    def start_daemon(self, name: str) -> None:
        """Start one of slurmdbd, slurmctld, slurmd-n0 and slurmd-n1, again too."""
        kind, _, node = name.partition("-")
        (self.folder / "run" / f"{name}.pid").unlink(missing_ok=True)
        arguments = [kind, "-D"]
        if node:  # a host name of its own: what runs there must be known by more than the numbers of processes
            arguments = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', node, *arguments, "-N", node]
        with (self.folder / "log" / f"{name}.out").open("a") as log:
            process = subprocess.Popen(arguments, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        (self.folder / "run" / f"{name}.pid").write_text(f"{process.pid}\n")

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a daemon a signal, and wait until it has ended."""
        file = self.folder / "run" / f"{name}.pid"
        if not file.exists():
            return
        pid = int(file.read_text())
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        for _ in range(300):
            if _ended(pid):
                return
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End all jobs and daemons, in the reverse of the order in which they began."""
        self.run("scancel", "-u", "root", timeout=10)
        for name in reversed(DAEMONS):
            self.kill(name, signal.SIGTERM)

    def recover(self) -> None:
        """Make it empty and whole again, whatever a test has done to it."""
        for name in DAEMONS[2:]:
            if _ended(int((self.folder / "run" / f"{name}.pid").read_text() or 0)):
                self.start_daemon(name)
        self._wait("slurmctld", lambda: self.run("scontrol", "ping").returncode == 0)
        self.run("scancel", "-u", "root")
        self._wait("slurmctld", lambda: not self.run("squeue", "-h").stdout.strip(), 60)
        self.mend()
        self._wait("slurmctld", self.idle, 60)

    def mend(self) -> None:
        """Do what an operator does where SLURM has drained a node, or holds a job back, after a daemon was killed."""
        if "drain" in self.run("sinfo", "-h", "-N", "-o", "%T").stdout:
            self.run("scontrol", "update", "nodename=n[0-1]", "state=resume")
        waiting = self.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").stdout.splitlines()
        for job_id in [line.partition(" ")[0] for line in waiting if "requeued held" in line]:
            self.run("scontrol", "release", job_id)

    def run(self, *command: str, timeout: float = 30) -> "subprocess.CompletedProcess[str]":
        """A command of SLURM's on this cluster."""
        try:
            return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", "timed out")

    def idle(self) -> bool:
        """Whether both nodes wait for work."""
        return self.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%T").stdout.split() == ["idle"] * len(NODES)

    def _start_munge(self) -> None:
        run = self.folder / "run"
        key = self.folder / "etc" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        places = {"key-file": key, "socket": run / "munge.socket", "pid-file": run / "munged.pid"}
        places |= {"log-file": self.folder / "log" / "munged.log", "seed-file": self.folder / "state" / "munge.seed"}
        done = self.run("munged", "--force", *(f"--{name}={place}" for name, place in places.items()))
        if done.returncode:
            raise ClusterError(f"munged: {done.stderr}")

    def _start_database(self, port: int) -> None:
        folder, run = self.folder / "database", self.folder / "run"
        (temporary := self.folder / "temporary").mkdir()  # its own: a server that starts empties the one it is given
        own = ["--no-defaults", f"--datadir={folder}", f"--tmpdir={temporary}", "--user=root"]
        done = self.run("mariadb-install-db", *own, "--skip-test-db", timeout=120)
        if done.returncode:
            raise ClusterError(f"mariadb-install-db: {done.stderr}")
        where = [f"--socket={run}/mariadb.socket", f"--port={port}", "--bind-address=127.0.0.1"]
        with (self.folder / "log" / "mariadbd.log").open("w") as log:
            small = ["--innodb-buffer-pool-size=64M", f"--pid-file={run}/mariadbd.pid", "--skip-name-resolve"]
            subprocess.Popen(["mariadbd", *own, *where, *small], stdout=log, stderr=log, start_new_session=True)
        client = ["mariadb", "--no-defaults", f"--socket={run}/mariadb.socket", "-e"]
        self._wait("mariadbd", lambda: self.run(*client, "select 1").returncode == 0)
        if self.run(*client, DATABASE).returncode:
            raise ClusterError("the accounting's database cannot be made")

    def _wait(self, name: str, happened: Callable[[], bool], seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > until:
                raise ClusterError(f"{name} does not come up; see {self.folder / 'log'}")
            time.sleep(0.2)


def _free_ports() -> dict[str, int]:
    names = [name for name in DAEMONS if name != "munged"]
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}
    for one in sockets:
        one.close()
    return ports


def _ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case ["start", folder]:
                Cluster(Path(folder)).start()
                print(f"export SLURM_CONF={Path(folder).absolute()}/etc/slurm.conf")
            case ["stop", folder]:
                Cluster(Path(folder)).stop()
            case _:
                sys.exit(__doc__)
    except ClusterError as error:
        sys.exit(str(error))
