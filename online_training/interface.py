"""Which address of this node to listen on: given as an address, as the name of an interface, or found out."""

from __future__ import annotations

import contextlib
import os
import socket

import psutil

AUTO = "auto"
"""The address by which other nodes know this one."""

_ELSEWHERE = ("192.0.2.1", 9)  # kept for documentation (RFC 5737): nothing is sent, only the route is looked up


def address_of(interface: str) -> str:
    """Return the IPv4 address that an interface means on this node.

    interface : an address, which is returned as it is; the name of an interface, as "ib0"; or "auto": what the
        scheduler's or the system's name of this node stands for, else the address on the way to other networks.

    Raises
    ------
    ValueError : this node has no such interface, or no address that another node could reach; names those it has.
    """
    if interface == AUTO:
        for name in (os.environ.get("SLURMD_NODENAME"), socket.gethostname()):
            with contextlib.suppress(OSError):
                address = socket.gethostbyname(name) if name else "127.0.0.1"
                if not address.startswith("127.") and address in _own_addresses():
                    return address
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_ELSEWHERE)
            return probe.getsockname()[0]
        raise ValueError(
            f"No address of {socket.gethostname()} leads to other nodes; it has {_told()}. Name one by --interface."
        )
    if interface == "*" or interface.count(".") == 3:
        return interface
    for address in psutil.net_if_addrs().get(interface, ()):
        if address.family == socket.AF_INET:
            return address.address
    raise ValueError(f"{socket.gethostname()} has no interface {interface!r} with an IPv4 address; it has {_told()}.")


def is_local(address: str) -> bool:
    """Whether only processes on the same node reach this address."""
    return address.startswith("127.")


def _own_addresses() -> set[str]:
    return {one.address for some in psutil.net_if_addrs().values() for one in some if one.family == socket.AF_INET}


def _told() -> str:
    found = [
        f"{name} ({one.address})"
        for name, some in psutil.net_if_addrs().items()
        for one in some
        if one.family == socket.AF_INET
    ]
    return ", ".join(found) or "none"
