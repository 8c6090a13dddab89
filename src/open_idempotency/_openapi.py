"""The OpenAPI description of a covered operation: its header, and the library's own responses.

It works on plain dictionaries, in JSON's form, and knows no framework. Existing entries are never overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from open_idempotency._core.key_sources import KeySource
from open_idempotency.policy import IdempotencyPolicy

#: the name of the problem's schema among the components
SCHEMA_NAME = "IdempotencyProblem"
MEDIA_TYPE = "application/problem+json"

PROBLEM_SCHEMA: Mapping[str, Any] = {
    "title": "Idempotency problem",
    "description": "Problem details (RFC 9457) that also say whether the same request may be sent again.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "urn:problem-type:open-idempotency: and the problem's name"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "The path of the request"},
        "retryable": {
            "type": "boolean",
            "description": "True: wait as long as Retry-After says, then send the same request with the same key. "
            "False: stop, and report the problem to a person",
        },
        "reference": {"type": "string", "description": "A random id by which the service finds this case in its log"},
    },
    "required": ["type", "title", "status", "detail", "instance", "retryable", "reference"],
}

_CONFLICT = (
    "The first request with this idempotency key is still running, its outcome is unknown, or its response "
    "could not be stored"
)
_REUSED = "The idempotency key was used with another request"
_TOO_LARGE = "The body of a request with an idempotency key may have at most {} bytes"
_TOO_MANY = "This caller has as many live idempotency keys as the service allows"
_UNAVAILABLE = "The service cannot check whether this request was carried out before, so it was not run"

#: statuses that may say when to send the same request again
_RETRYABLE = ("409", "429", "503")
_RETRY_AFTER: Mapping[str, Any] = {
    "description": "Seconds after which the same request may be sent again, with the same key; present if the problem "
    "is retryable",
    "schema": {"type": "integer", "minimum": 1},
}
# Headers that the library may add to a response of the application.
_OF_OUTCOMES: Mapping[str, Any] = {
    "Idempotent-Replayed": {
        "description": "Present if this is the stored response to an earlier request with this key",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Idempotency-Status": {
        "description": "Present if the response could not be recorded in time, so that a retry may run again",
        "schema": {"type": "string", "enum": ["unrecorded"]},
    },
}

_ECHO: Mapping[str, Any] = {
    "description": "The idempotency key of the request; problems about a valid key have it too",
    "schema": {"type": "string"},
}

# The keys that `_core.keys` accepts, without parameters of the header and surrounding space, which clients do not send.
_BARE_KEY = r"[!#-+\--:<-\[\]-~]{1,255}"
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\]){1,255}"'
_KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"


def document(operation: dict[str, Any], policy: IdempotencyPolicy, problem: Mapping[str, Any]) -> None:
    """Add the key's header, the headers of replays, and the library's own responses to an operation, in place.

    The responses are 400, 409, 413, 422 and 503, and 429 with a quota. ``problem``: the schema of the problem, such as
    a ``$ref`` to it.
    """
    if policy.key is None:
        _add_header(operation.setdefault("parameters", []), policy)
    responses: dict[str, Any] = operation.setdefault("responses", {})
    for status, response in responses.items():
        if str(status)[0] in "23" or status == "default":
            _add_headers(response, _OF_OUTCOMES)
            if policy.echo_key:
                _add_headers(response, {policy.header: _ECHO})
    # Other forms of problems are not described: that of a renderer is unknown, and Stripe documents its own.
    ours = None if policy.render_problem or policy.compat else problem
    for status, descriptions in _responses(policy).items():
        for description in descriptions:
            _add_response(responses, status, description, ours)
        if status in _RETRYABLE and policy.render_problem is None:
            _add_headers(responses[status], {"Retry-After": _RETRY_AFTER})


def _responses(policy: IdempotencyPolicy) -> Mapping[str, list[str]]:
    source = f", in {policy.key}," if isinstance(policy.key, KeySource) else ""
    malformed = f"The idempotency key{source} is " + ("missing or malformed" if policy.required else "malformed")
    of_key = {"400": [malformed, _REUSED]} if policy.compat == "stripe" else {"400": [malformed], "422": [_REUSED]}
    quota = {} if policy.max_live_keys is None else {"429": [_TOO_MANY]}
    too_large = _TOO_LARGE.format(policy.max_request_bytes)
    return {**of_key, "409": [_CONFLICT], "413": [too_large], **quota, "503": [_UNAVAILABLE]}


def _add_header(parameters: list[dict[str, Any]], policy: IdempotencyPolicy) -> None:
    for parameter in parameters:
        if parameter.get("in") == "header" and parameter.get("name", "").lower() == policy.header.lower():
            parameter["required"] = policy.required or parameter.get("required", False)
            return
    strict = policy.profile == "strict"
    examples = {"quoted": {"value": f'"{_KEY}"'}}
    if not strict:
        examples["bare"] = {"value": _KEY}
    parameters.append(
        {
            "name": policy.header,
            "in": "header",
            "required": policy.required,
            "description": "A key that the client generates, such as a random UUID"
            + (", in double quotes" if strict else ", with double quotes around it or without")
            + ": the same one with each retry of a request, another one for each new request. Without credentials it "
            "needs at least 16 characters.",
            "schema": {"type": "string", "pattern": f"^{_STRING}$" if strict else f"^(?:{_STRING}|{_BARE_KEY})$"},
            "examples": examples,
        }
    )


def _add_headers(response: dict[str, Any], headers: Mapping[str, Any]) -> None:
    if "$ref" in response:
        return
    known = response.setdefault("headers", {})
    there = {name.lower() for name in known}
    known.update({name: dict(said) for name, said in headers.items() if name.lower() not in there})


def _add_response(responses: dict[str, Any], status: str, description: str, problem: Mapping[str, Any] | None) -> None:
    response: dict[str, Any] = responses.setdefault(status, {"description": description})
    if "$ref" in response:
        return  # a reference to a shared response, which other operations use
    said = response.get("description", "")
    if description not in said:
        response["description"] = f"{said}. {description}" if said else description
    if problem is not None:
        response.setdefault("content", {}).setdefault(MEDIA_TYPE, {"schema": dict(problem)})
