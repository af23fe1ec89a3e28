"""How a route gets at the process's parts."""

from typing import Annotated

from fastapi import Depends, Request

from gateway.bootstrap import Gateway


async def _gateway(request: Request) -> Gateway:  # FastAPI would call a plain function in a thread
    gateway: Gateway = request.app.state.gateway
    return gateway


FromGateway = Annotated[Gateway, Depends(_gateway)]
