"""The OpenAPI description of a covered operation: its header, and the library's own responses.

It works on plain dictionaries, in JSON's form, and knows no framework. Existing entries are never overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from open_idempotency.policy import IdempotencyPolicy

#: the name of the problem's schema among the components
SCHEMA_NAME = "IdempotencyProblem"
MEDIA_TYPE = "application/problem+json"

PROBLEM_SCHEMA: Mapping[str, Any] = {
    "title": "Idempotency problem",
    "description": "Problem details (RFC 9457) that also say whether to retry, and with which key.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "urn:problem-type:open-idempotency: and the problem's name"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "The path of the request"},
        "retryable": {"type": "boolean", "description": "Whether another try makes sense"},
        "reuse_key": {"type": "boolean", "description": "Whether to retry with the same key"},
    },
    "required": ["type", "title", "status", "detail", "instance", "retryable", "reuse_key"],
}

_CONFLICT = (
    "The first request with this idempotency key is still running, its outcome is unknown, or its response "
    "could not be stored"
)
_REUSED = "The idempotency key was used with another request"
_TOO_MANY = "This caller has as many live idempotency keys as the service allows"


def document(operation: dict[str, Any], policy: IdempotencyPolicy, problem: Mapping[str, Any]) -> None:
    """Add the header and the library's own responses (400, 409, 422; 429 with a quota) to an operation, in place.

    ``problem``: the schema of the problem, such as a ``$ref`` to it.
    """
    _add_header(operation.setdefault("parameters", []), policy)
    responses: dict[str, Any] = operation.setdefault("responses", {})
    # Other forms are not described: a renderer's is unknown, and Stripe documents its own.
    ours = None if policy.render_problem or policy.compat else problem
    for status, descriptions in _responses(policy).items():
        for description in descriptions:
            _add_response(responses, status, description, ours)


def _responses(policy: IdempotencyPolicy) -> Mapping[str, list[str]]:
    malformed = "The idempotency key is " + ("missing or malformed" if policy.required else "malformed")
    quota = {} if policy.max_live_keys is None else {"429": [_TOO_MANY]}
    if policy.compat == "stripe":
        return {"400": [malformed, _REUSED], "409": [_CONFLICT], **quota}
    return {"400": [malformed], "409": [_CONFLICT], "422": [_REUSED], **quota}


def _add_header(parameters: list[dict[str, Any]], policy: IdempotencyPolicy) -> None:
    for parameter in parameters:
        if parameter.get("in") == "header" and parameter.get("name", "").lower() == policy.header.lower():
            parameter["required"] = policy.required or parameter.get("required", False)
            return
    parameters.append(
        {
            "name": policy.header,
            "in": "header",
            "required": policy.required,
            "description": "A key of the client's own making, such as a random UUID in double quotes: the same one "
            "with each retry of a request, another one for each new request.",
            "schema": {"type": "string"},
        }
    )


def _add_response(responses: dict[str, Any], status: str, description: str, problem: Mapping[str, Any] | None) -> None:
    response: dict[str, Any] = responses.setdefault(status, {"description": description})
    if "$ref" in response:
        return  # a response that is said elsewhere, which other operations share
    said = response.get("description", "")
    if description not in said:
        response["description"] = f"{said}. {description}" if said else description
    if problem is not None:
        response.setdefault("content", {}).setdefault(MEDIA_TYPE, {"schema": dict(problem)})
