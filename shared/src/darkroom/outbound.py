"""Where a request may go whose address a client gave: to the public internet, and to the networks that a setting names.

The gateway checks what the URL alone tells; whoever sends the request checks the address that it connects to. A name
proves nothing: it may lead elsewhere by then.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NewType, TypeAlias
from urllib.parse import urlsplit

from darkroom.errors import ConfigurationError

MAX_URL_CHARACTERS = 2048

Network: TypeAlias = IPv4Network | IPv6Network
Host = NewType("Host", str)
"""A name or address in lower case, IPv6 without brackets."""

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# What Python 3.11 takes for global and no host of the public internet has: multicast, relays into other networks.
_NOT_PUBLIC = tuple(map(ip_network, ("224.0.0.0/4", "192.0.0.0/24", "192.88.99.0/24", "2002::/16", "3fff::/20")))
_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that has been given out; what embeds IPv4 addresses (mapped, compatible, NAT64) lies outside."""


class RefusedTargetError(ValueError):
    """A URL or an address that requests may not go to; the text completes a sentence about it."""


@dataclass(frozen=True)
class Target:
    """A checked URL in parts, so that nobody parses it again and reads something else. `path` has the query."""

    is_tls: bool
    host: Host
    port: int
    path: str


@dataclass(frozen=True)
class OutboundPolicy:
    """The public internet over https, and these networks over http too."""

    allowed_networks: tuple[Network, ...] = ()

    def check_url(self, url: str) -> Target:
        """The URL's parts; raises `RefusedTargetError` when it can be refused without looking its name up."""
        target = parse_url(url)
        if _is_address(target.host):
            self.check_address(target.host, is_tls=target.is_tls)
        elif target.host == "localhost" and not self.allowed_networks:
            raise RefusedTargetError("leads to this machine")
        elif not target.is_tls and not self.allowed_networks:
            raise RefusedTargetError("is not https")
        return target

    def check_address(self, address: str, *, is_tls: bool) -> None:
        """Raises `RefusedTargetError` unless a connection may go to this IP address."""
        parsed = ip_address(address)
        if any(parsed in network for network in self.allowed_networks):
            return
        if not is_public(address):
            raise RefusedTargetError(f"leads to {parsed}, which is not on the public internet")
        if not is_tls:
            raise RefusedTargetError("is not https")


def is_public(address: str) -> bool:
    """Whether an IP address is one that a host of the public internet can have."""
    parsed = ip_address(address)
    if parsed.version == 6 and parsed not in _GLOBAL_UNICAST:
        return False
    return parsed.is_global and not any(parsed in network for network in _NOT_PUBLIC)


def parse_url(url: str) -> Target:
    """The parts of an http or https URL; raises `RefusedTargetError`, also where two parsers could differ."""
    if len(url) > MAX_URL_CHARACTERS:
        raise RefusedTargetError(f"has {len(url)} characters and the limit is {MAX_URL_CHARACTERS}")
    if not all(33 <= ord(character) <= 126 for character in url) or "\\" in url:
        raise RefusedTargetError("has a character that no URL has: write names in punycode and the rest in %-codes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RefusedTargetError(f"cannot be read: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise RefusedTargetError("begins with neither https:// nor http://")
    if "@" in parts.netloc:
        raise RefusedTargetError("has a user name or a password; the signature tells who it comes from")
    host = (parts.hostname or "").lower()
    # urlsplit takes any word in brackets for a name.
    if ("[" in parts.netloc) != (":" in host) or not (_is_address(host) or _is_name(host)):
        raise RefusedTargetError(f"has no valid host ({host!r})")
    is_tls = parts.scheme == "https"
    port = port if port is not None else 443 if is_tls else 80
    if port not in (80, 443) and port < 1024:
        raise RefusedTargetError(f"has the port {port}; 80, 443 and those from 1024 on are allowed")
    return Target(is_tls, Host(host), port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def parse_networks(text: str) -> tuple[Network, ...]:
    """The networks in a list separated by spaces; raises `ConfigurationError`."""
    try:
        return tuple(ip_network(each) for each in text.split())
    except ValueError as error:
        raise ConfigurationError(f"{error}: networks are written like 10.0.0.0/8 or fd00::/8") from error


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_name(host: str) -> bool:
    # 127.1 and 2130706433 are addresses to the resolver, though not to us.
    return bool(_NAME.fullmatch(host)) and not _NUMBER.fullmatch(host.rpartition(".")[2])
