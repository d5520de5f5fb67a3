"""Which network interface of this machine leads to the others."""

from __future__ import annotations

import socket
import struct

INTERFACE = "GLOO_SOCKET_IFNAME"
"""The variable by which gloo is told the interface."""
LOOPBACK = 127
_GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux


def towards(host: str) -> str:
    """Name of the interface that packets to ``host`` leave by; empty if that is this machine, or unknown."""
    try:
        import fcntl
    except ImportError:
        return ""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # nothing is sent
            own = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                try:
                    found = fcntl.ioctl(probe.fileno(), _GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
                except OSError:  # it has no address
                    continue
                if found[20:24] == own:
                    return "" if own[0] == LOOPBACK else name
    except OSError:
        pass
    return ""
