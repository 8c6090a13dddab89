"""A plain FastAPI application for generated requests: it knows nothing of idempotency, and has no stages.

Each application has its own books, and numbers its entries from one, so that two of them respond alike.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field


class Entry(BaseModel):
    """An entry of the books."""

    title: str = Field(min_length=1, max_length=40)
    amount: int = Field(ge=0, le=1000)
    tags: list[str] = Field(default=[], max_length=3)


def make_app(**options: Any) -> FastAPI:
    """A new application with empty books. ``options``: FastAPI's."""
    app = FastAPI(title="Books", **options)
    numbers, entries = count(1), dict[int, Entry]()

    @app.post("/entries", status_code=201)
    def create(entry: Entry, response: Response) -> dict[str, Any]:
        """Create an entry; some are refused, and one raises a bug."""
        if entry.amount == 1000:
            raise HTTPException(409, "too much")
        if entry.amount == 999:
            raise RuntimeError("nobody has thought of that")
        number = next(numbers)
        entries[number] = entry
        response.headers["Location"] = f"/entries/{number}"
        response.set_cookie("last", str(number))
        return {"number": number, **entry.model_dump()}

    @app.patch("/entries/{number}")
    async def change(number: int, entry: Entry) -> Response:
        """Change an entry; the response has no body."""
        if number not in entries:
            raise HTTPException(404, "no such entry")
        entries[number] = entry
        return Response(status_code=204)

    @app.put("/entries/{number}")
    async def replace(number: int, request: Request) -> Response:
        """Respond with the request's body, byte by byte; not covered by default."""
        return Response(await request.body(), 200, media_type="application/octet-stream")

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        """Respond with the body in pieces, its type and the query."""
        body = await request.body()
        fields = {"X-Query": request.url.query, "X-Size": str(len(body))}
        return StreamingResponse((body[at : at + 7] for at in range(0, len(body), 7)), headers=fields)

    @app.get("/entries/{number}")
    def read(number: int) -> Entry:
        """Read an entry."""
        if number not in entries:
            raise HTTPException(404, "no such entry")
        return entries[number]

    @app.exception_handler(RuntimeError)
    def broken(request: Request, error: RuntimeError) -> Response:
        """The application's own response to errors."""
        return JSONResponse({"error": str(error)}, 500)

    return app
