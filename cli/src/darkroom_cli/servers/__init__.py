"""PostgreSQL, Redis and RabbitMQ as private child processes, for the local mode and for tests."""

from darkroom_cli.servers.nursery import ForkedProcess, Nursery, can_fork, child_process
from darkroom_cli.servers.ports import release_port, reserve_port
from darkroom_cli.servers.postgres import PostgresServer
from darkroom_cli.servers.process import ChildProcess, Process, ServerError
from darkroom_cli.servers.rabbitmq import RabbitServer
from darkroom_cli.servers.redis import RedisServer
from darkroom_cli.servers.server import Server

__all__ = [
    "ChildProcess",
    "ForkedProcess",
    "Nursery",
    "PostgresServer",
    "Process",
    "RabbitServer",
    "RedisServer",
    "Server",
    "ServerError",
    "can_fork",
    "child_process",
    "release_port",
    "reserve_port",
]
