"""PostgreSQL, Redis and RabbitMQ as private child processes, for the local mode and for tests."""

from darkroom_cli.servers.ports import release_port, reserve_port
from darkroom_cli.servers.postgres import PostgresServer
from darkroom_cli.servers.process import ChildProcess, Process, ServerError
from darkroom_cli.servers.rabbitmq import RabbitServer
from darkroom_cli.servers.redis import RedisServer
from darkroom_cli.servers.server import Server

__all__ = [
    "ChildProcess",
    "PostgresServer",
    "Process",
    "RabbitServer",
    "RedisServer",
    "Server",
    "ServerError",
    "release_port",
    "reserve_port",
]
