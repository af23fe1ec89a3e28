"""Where callbacks may go: one table of what is refused, and one of what is not."""

import pytest

from darkroom.errors import ConfigurationError
from darkroom.outbound import OutboundPolicy, RefusedTargetError, Target, is_public, parse_networks, parse_url

PUBLIC = OutboundPolicy()
INSIDE = OutboundPolicy(parse_networks("127.0.0.0/8 10.1.0.0/16 fd00::/8"))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",  # carrier-grade NAT
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",  # the cloud's metadata
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.9",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",  # compatible with IPv4
        "::ffff:127.0.0.1",  # mapped
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",  # NAT64
        "100::1",
        "2001::1",  # Teredo
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd12::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_that_no_host_of_the_internet_has_is_not_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(RefusedTargetError):
        PUBLIC.check_address(address, is_tls=True)
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(RefusedTargetError):
        PUBLIC.check_url(f"https://{literal}/hook")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450::1"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)
    PUBLIC.check_address(address, is_tls=True)
    with pytest.raises(RefusedTargetError, match="not https"):
        PUBLIC.check_address(address, is_tls=False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org/hook",
        "//example.org/hook",
        "ftp://example.org/hook",
        "file:///etc/passwd",
        "gopher://example.org/",
        "http://example.org/hook",  # not https
        "https://",
        "https:///hook",
        "https://user@example.org/",
        "https://user:password@example.org/",
        "https://example.org\\@127.0.0.1/",
        "https://example.org:25/",
        "https://example.org:0/",
        "https://example.org:65536/",
        "https://example.org:x/",
        "https://exa mple.org/",
        "https://example.org/\n",
        "https://example.org/\r\nHost: other",
        "https://b\u00fccher.example/",
        "https://ex\u00adample.org/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://1.2.3.4.5/",
        "https://[::1/",
        "https://[v1.x]/",
        "https://.example.org/",
        "https://example..org/",
        "https://-example.org/",
        "https://" + "a" * 64 + ".org/",
        "https://localhost/",
        "https://LOCALHOST:8443/",
        "https://example.org/" + "x" * 2048,
    ],
)
def test_a_url_is_refused_before_anything_is_looked_up(url: str) -> None:
    with pytest.raises(RefusedTargetError):
        PUBLIC.check_url(url)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.org", Target(True, "example.org", 443, "/")),
        ("HTTPS://Example.ORG/Hook?a=1&b=%20#part", Target(True, "example.org", 443, "/Hook?a=1&b=%20")),
        ("https://xn--bcher-kva.example:8443/", Target(True, "xn--bcher-kva.example", 8443, "/")),
        ("https://8.8.8.8:80/x", Target(True, "8.8.8.8", 80, "/x")),
        ("https://[2606:4700:4700::1111]:1024/", Target(True, "2606:4700:4700::1111", 1024, "/")),
    ],
)
def test_a_url_to_the_internet_is_read_into_its_parts(url: str, target: Target) -> None:
    assert PUBLIC.check_url(url) == target == parse_url(url)


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("http://127.0.0.1:9000/hook", True),
        ("https://10.1.2.3/", True),
        ("http://10.2.0.1/", False),
        ("http://[fd00::1]:8080/", True),
        ("http://[::1]:8080/", False),
        ("http://[::ffff:127.0.0.1]/", False),
        ("http://backend:3000/hook", True),  # where it leads is seen when it is looked up
        ("http://localhost:3000/hook", True),
        ("http://8.8.8.8/", False),
        ("https://8.8.8.8/", True),
        ("http://127.0.0.1:25/", False),
    ],
)
def test_named_networks_are_allowed_over_http_too_and_no_others(url: str, is_allowed: bool) -> None:
    if is_allowed:
        INSIDE.check_url(url)
    else:
        with pytest.raises(RefusedTargetError):
            INSIDE.check_url(url)


@pytest.mark.parametrize("networks", ["10.0.0.0/8,127.0.0.0/8", "10.0.0.1/8", "localhost", "*"])
def test_a_network_that_cannot_be_read_ends_the_start(networks: str) -> None:
    with pytest.raises(ConfigurationError, match="networks are written like"):
        parse_networks(networks)
