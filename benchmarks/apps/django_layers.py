"""The least that a Django middleware can do, sync and async."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

GetResponse = Callable[[HttpRequest], Any]


@sync_and_async_middleware
def layer(get_response: GetResponse) -> Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]:
    """Hand the request on."""
    if iscoroutinefunction(get_response):

        async def wait(request: HttpRequest) -> HttpResponseBase:
            response: HttpResponseBase = await get_response(request)
            return response

        return wait

    def run(request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = get_response(request)
        return response

    return run
