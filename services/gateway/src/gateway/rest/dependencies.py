"""How a route gets at the process's parts."""

from typing import Annotated

from fastapi import Depends, Request

from gateway.bootstrap import Gateway


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


FromGateway = Annotated[Gateway, Depends(_gateway)]
