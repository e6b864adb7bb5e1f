"""Put each rank into a network namespace of its own and be the switch between them.

Started as `python -m hwprofiles.calibration.network.lab` with a topology as JSON; ends when its
standard input does. A namespace holds two point-to-point devices (TUN), `near` to the ranks of the
same node and `far` to all others; the other ends are file descriptors of this process.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hwprofiles.calibration.network.switch import LinkSpec, Port, Switch

_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER of <linux/sched.h>
_SET_NAME = 0x400454CA  # TUNSETIFF of <linux/if_tun.h>
_PACKETS = 0x0001 | 0x1000  # IFF_TUN | IFF_NO_PI
_TUN = Path("/dev/net/tun")
PACKET_BYTES = 9_000
"""Few large packets: a switch in Python moves some tens of thousands a second."""
WINDOW_BYTES = 512 * 1024
"""Most bytes of a connection under way, so that no queue ever overflows."""
SETTINGS = {
    "wmem": f"4096 {WINDOW_BYTES} {WINDOW_BYTES}",
    "rmem": f"4096 {WINDOW_BYTES} {4 * WINDOW_BYTES}",
    "slow_start_after_idle": "0",
}
"""What a namespace's TCP is told (`man 7 tcp`): windows, and no slow start after each product."""
HASTE = "quickack 1"
"""Delayed acknowledgements would wait for 40 ms."""
PRIORITY = 10
"""Of the ranks; the switch stands above them, so that products never hold packets up."""


@dataclass(frozen=True)
class Topology:
    """Equal nodes of equal ranks; `near` joins a node, `far` all nodes."""

    nodes: int
    ranks_per_node: int
    near: LinkSpec
    far: LinkSpec

    @property
    def ranks(self) -> int:
        """Ranks of all nodes."""
        return self.nodes * self.ranks_per_node

    def text(self) -> str:
        """The topology as JSON, read by `topology_of`."""
        return json.dumps(asdict(self))


def topology_of(text: str) -> Topology:
    """Read a topology from JSON."""
    data = json.loads(text)
    near, far = (LinkSpec(**data.pop(name)) for name in ("near", "far"))
    return Topology(**data, near=near, far=far)


def forbidden() -> str | None:
    """Why namespaces cannot be made here; none where they can. Asked in another process."""
    if not hasattr(os, "sched_setaffinity") or not _TUN.exists():
        return "network namespaces need Linux with /dev/net/tun"
    if shutil.which("ip") is None:
        return "the command `ip` (iproute2) is not installed"
    ask = "from hwprofiles.calibration.network.lab import make_ports; make_ports(0, None)"
    run = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, check=False
    )
    lines = run.stderr.strip().splitlines() or ["no word why"]
    return None if run.returncode == 0 else f"namespaces are not permitted here: {lines[-1]}"


def address(rank: int) -> str:
    """IPv4 address of a rank; the network exists inside the namespaces only."""
    return f"10.77.{rank // 200}.{rank % 200 + 1}"


def make_ports(rank: int, topology: Topology | None) -> list[Port]:
    """Enter a new namespace and give it its two devices; the calling thread stays in it.

    Args:
        rank: whose namespace it is.
        topology: who else there is; none makes one device without routes, to try.

    Raises:
        OSError: where the kernel does not permit it.
    """
    _enter_namespace()
    links = (topology.near, topology.far) if topology else (LinkSpec("near", 1.0, 0.0),)
    ports = [Port(_device(link.name), _packed(rank), link) for link in links]
    lines = ["link set lo up"]
    for link in links:
        lines += [f"link set {link.name} mtu {PACKET_BYTES} txqueuelen 4000 up"]
    lines += [f"addr add {address(rank)}/32 dev near"]
    for other in range(topology.ranks if topology else 0):
        if topology is not None and other != rank:
            same = other // topology.ranks_per_node == rank // topology.ranks_per_node
            name = links[0 if same else 1].name
            lines += [f"route add {address(other)}/32 dev {name} src {address(rank)} {HASTE}"]
    subprocess.run(
        ["ip", "-batch", "-"],  # noqa: S607 - on the path
        input="\n".join(lines), text=True, check=True, capture_output=True,
    )  # fmt: skip
    for name, value in SETTINGS.items():
        Path(f"/proc/sys/net/ipv4/tcp_{name}").write_text(value, encoding="ascii")
    return ports


def _packed(rank: int) -> bytes:
    return bytes(int(part) for part in address(rank).split("."))


def _enter_namespace() -> None:
    """Leave the caller's network; without rights of root inside a namespace of users."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEW_NETWORK) == 0:
        return
    if libc.unshare(_NEW_NETWORK | _NEW_USER) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")


def _device(name: str) -> int:
    descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _SET_NAME, struct.pack("16sH22x", name.encode(), _PACKETS))
    return descriptor


def start_rank(
    number: int, world: int, store: str, teller: str, backend: str = "gloo"
) -> subprocess.Popen[bytes]:
    """Start one rank where the caller is; without a namespace it talks over the loopback."""
    near = {"GLOO_SOCKET_IFNAME": "near"} if os.environ.get("MOESAIC_LAB") else {}
    command = [sys.executable, "-m", "hwprofiles.calibration.network.rank"]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [*command, str(number), str(world), store, teller, backend],
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1", **near},
        stdin=subprocess.DEVNULL,
    )


def in_front(priority: int) -> bool:
    """Run before ordinary processes where that is permitted, so that other load does not matter."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        return False
    return True


def _over(ranks: Sequence[subprocess.Popen[bytes]]) -> bool:
    """True when the teller has hung up or a rank has ended."""
    hung_up, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(hung_up) or any(rank.poll() is not None for rank in ranks)


def main() -> None:
    """Make the namespaces, start the ranks, forward until the end."""
    topology, store, teller = topology_of(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.environ["MOESAIC_LAB"] = "1"
    in_front(PRIORITY)
    ports: list[Port] = []
    ranks = []
    for number in range(topology.ranks):
        ports += make_ports(number, topology)
        ranks.append(start_rank(number, topology.ranks, store, teller))
    in_front(PRIORITY + 1)
    switch = Switch(ports)
    try:
        switch.forward(lambda: _over(ranks))
    finally:
        for rank in ranks:
            rank.terminate()


if __name__ == "__main__":
    main()
