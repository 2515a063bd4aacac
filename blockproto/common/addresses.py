"""Addresses of peers: which of them count as one.

Spec: BP1-LIM-004.
"""

from __future__ import annotations

import functools
import ipaddress

_V6_NETWORK_LENGTH = 8
_REMEMBERED = 4096


@functools.lru_cache(_REMEMBERED)
def neighbourhood(host: str) -> str:
    """The part of an address that counts as one: an IPv4 address, or the /64 of an IPv6 one, as one household gets it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.packed[:_V6_NETWORK_LENGTH].hex()
