"""PostgreSQL, Redis and RabbitMQ as private child processes, for the local mode and for tests."""

from darkroom_cli.servers.nursery import CAN_FORK, ForkedProcess, Nursery, child_process
from darkroom_cli.servers.ports import release_port, reserve_port
from darkroom_cli.servers.postgres import PostgresServer
from darkroom_cli.servers.process import ChildProcess, Process, ServerError
from darkroom_cli.servers.rabbitmq import RabbitServer
from darkroom_cli.servers.redis import RedisServer
from darkroom_cli.servers.server import Server

__all__ = [
    "CAN_FORK",
    "ChildProcess",
    "ForkedProcess",
    "Nursery",
    "PostgresServer",
    "Process",
    "RabbitServer",
    "RedisServer",
    "Server",
    "ServerError",
    "child_process",
    "release_port",
    "reserve_port",
]
