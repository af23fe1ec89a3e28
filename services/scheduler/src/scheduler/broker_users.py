"""The users of RabbitMQ, each with the least that its service needs: whoever takes a worker over gets no further.

A permission is a pattern over names: *configure* makes and removes, *write* publishes to exchanges and binds queues,
*read* consumes from queues and binds to exchanges. On a topic exchange, routing keys can be limited as well.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kombu.transport.native_delayed_delivery import CELERY_DELAYED_DELIVERY_EXCHANGE, MAX_LEVEL, level_name

from darkroom import topology
from darkroom.topology import Node, queues_of

DELAYED = level_name(MAX_LEVEL)
"""The exchange that takes every message with a countdown."""

CONTROL = ("celery.pidbox", "reply.celery.pidbox", "celeryev")
"""Celery's exchanges for remote control and for events; workers make them when they are missing."""

NOTHING = "^$"


def exactly(*patterns: str) -> str:
    """A pattern for the names that one of these matches whole."""
    return f"^({'|'.join(patterns)})$"


def _names(*names: str) -> tuple[str, ...]:
    return tuple(name.replace(".", r"\.") for name in names)


@dataclass(frozen=True)
class Permissions:
    """Patterns over the names of exchanges and queues, and over the routing keys of those exchanges that limit them."""

    configure: str = NOTHING
    write: str = NOTHING
    read: str = NOTHING
    keys: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


def _worker(
    *nodes: Node, sends_to: tuple[str, ...] = (), hints: tuple[str, ...] = (), reads: tuple[str, ...] = ()
) -> Permissions:
    """A worker's own queues and control names, and publishing tasks, at once or with a countdown, to these queues."""
    mailbox = rf"({'|'.join(nodes)})@.+\.celery\.pidbox"
    control = (*_names(*CONTROL), mailbox)
    own = tuple(queue for node in nodes for queue in queues_of(node))
    keys = {}
    if sends_to:
        routes = exactly(*_names(*own, *sends_to))
        # In front of a delayed message's key there is its delay, one digit for each level.
        keys = {topology.TASKS.name: routes, DELAYED: rf"^([01]\.){{{MAX_LEVEL + 1}}}" + routes.removeprefix("^")}
    if hints:
        keys[topology.EVENTS.name] = exactly(*_names(*hints))
    exchanges = (topology.TASKS.name, DELAYED, *((topology.EVENTS.name,) if hints else ()))
    return Permissions(
        configure=exactly(*control),
        write=exactly(*_names(*exchanges), *control),
        read=exactly(*_names(*own, *reads, "celery.pidbox"), mailbox),
        keys=keys,
    )


_OWNED = exactly(
    *_names(*topology.CONSUMED_BY, topology.DEAD_LETTERS),
    *_names(topology.TASKS.name, topology.EVENTS.name, topology.DEAD.name, CELERY_DELAYED_DELIVERY_EXCHANGE),
    r"celery_delayed_\d+",
)
_WATCHED = exactly(*_names(*CONTROL), r"celeryev\..+", r".+\.reply\.celery\.pidbox")

USERS: Mapping[str, Permissions] = MappingProxyType(
    {
        "topology": Permissions(configure=_OWNED, write=_OWNED, read=_OWNED),
        "gateway": Permissions(write=exactly(*_names(topology.TASKS.name, topology.EVENTS.name))),
        # Each of both may pass a photo on to the next step and no further: neither can start a backup or a clean up.
        "thumbnailer": _worker(
            Node.THUMBNAILER,
            Node.THUMBNAILER_BULK,
            sends_to=(*queues_of(Node.EMBEDDER), *queues_of(Node.FINALIZE)),
            hints=("image.prepared",),
        ),
        "embedder": _worker(Node.EMBEDDER, sends_to=queues_of(Node.FINALIZE)),
        # Fences go to every queue.
        "scheduler": _worker(Node.FINALIZE, Node.MAINTENANCE, reads=(topology.DEAD_LETTERS,)),
        # Besides, it returns fences.
        "callbacks": _worker(Node.CALLBACKS, sends_to=queues_of(Node.FINALIZE)),
        "flower": Permissions(configure=_WATCHED, write=_WATCHED, read=_WATCHED),
        "monitor": Permissions(tags=("monitoring",)),
    }
)
"""Every user and what it may."""


def definitions(passwords: Mapping[str, str], salt: bytes, vhost: str = "/") -> str:
    """The users with these passwords and their permissions, as the JSON that RabbitMQ imports.

    `salt`: 4 random bytes.
    """
    return json.dumps(
        {
            "vhosts": [{"name": vhost}],
            "users": [
                {
                    "name": name,
                    "password_hash": _password_hash(passwords[name], salt),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": list(user.tags),
                }
                for name, user in USERS.items()
            ],
            "permissions": [
                {"user": name, "vhost": vhost, "configure": user.configure, "write": user.write, "read": user.read}
                for name, user in USERS.items()
            ],
            "topic_permissions": [
                {"user": name, "vhost": vhost, "exchange": exchange, "write": keys, "read": NOTHING}
                for name, user in USERS.items()
                for exchange, keys in user.keys.items()
            ],
        },
        indent=1,
    )


def _password_hash(password: str, salt: bytes) -> str:
    """Salt, then SHA-256 of salt and password, in base 64: RabbitMQ's own format."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
