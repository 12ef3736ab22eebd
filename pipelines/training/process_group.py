"""The process group of the workers, on the network interface that Ray uses."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

INTERFACE = "GLOO_SOCKET_IFNAME"
_ASK_ADDRESS = 0x8915  # SIOCGIFADDR, Linux


@dataclass
class ProcessGroupConfig(TorchConfig):
    """Ray Train's configuration, except that gloo listens on Ray's interface.

    Gloo takes the address that the host's name resolves to, which on many hosts is a loopback one: peers on other hosts
    then get "Connection refused" (torch 2.14). An existing `GLOO_SOCKET_IFNAME` has priority.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend class that Ray Train starts on the workers."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(listen_where_ray_does)
        super().on_start(worker_group, backend_config)


def listen_where_ray_does() -> None:
    """Make gloo use the interface of this node's Ray address, for process groups created later."""
    interface = interface_of(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    if interface is not None:
        os.environ.setdefault(INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """Return the network interface with an IPv4 address; None if not found."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked, _ASK_ADDRESS, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
