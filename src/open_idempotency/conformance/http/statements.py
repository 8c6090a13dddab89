"""The table: every statement that is held against an endpoint, in the order in which it is reported.

MUST and SHOULD are the draft's. A RULE is one of this package's where the draft is silent, because clients are harmed
without it; its section is a line or heading of the behaviour page. INFO is told and never counted.
"""

from __future__ import annotations

from open_idempotency.conformance.http import header, refusals, replays
from open_idempotency.conformance.http.verdicts import Level, Statement

_MUST, _SHOULD, _RULE, _INFO = Level.MUST, Level.SHOULD, Level.RULE, Level.INFO

STATEMENTS: tuple[Statement, ...] = (
    Statement("string-taken", _MUST, "draft 2.1", "A key that is a String, in quotes, is taken.", header.string_taken),
    Statement("new-keys", _SHOULD, "draft 2.6", "Each request with a new key is carried out.", replays.new_keys),
    Statement(
        "retry-status",
        _SHOULD,
        "draft 2.6",
        "A retry is answered with the first answer's status.",
        replays.retry_status,
    ),
    Statement(
        "retry-result",
        _SHOULD,
        "draft 2.6",
        "A retry is answered with the first answer's body and Location; nothing is carried out again.",
        replays.retry_body,
    ),
    Statement(
        "retry-fields", _RULE, "R-01", "A retry is answered with the first answer's fields.", replays.retry_fields
    ),
    Statement(
        "retry-private",
        _RULE,
        "R-02",
        "Set-Cookie and other fields for one client and moment are not repeated to a retry.",
        replays.retry_private_fields,
    ),
    Statement("retry-marked", _INFO, "O-02", "A replay says Idempotent-Replayed: true.", replays.retry_marked),
    Statement(
        "reuse-refused",
        _SHOULD,
        "draft 2.7",
        "A key that comes with another payload is refused.",
        refusals.reuse_refused,
    ),
    Statement("reuse-status", _SHOULD, "draft 2.7", "That refusal is a 422.", refusals.reuse_status),
    Statement(
        "reuse-explained",
        _SHOULD,
        "draft 2.7",
        "That refusal is a problem document, or links to documentation.",
        refusals.reuse_explained,
    ),
    Statement(
        "reuse-harmless",
        _SHOULD,
        "draft 2.6",
        "A retry with the right payload still gets the first answer afterwards.",
        refusals.reuse_harmless,
    ),
    Statement(
        "concurrent-once",
        _SHOULD,
        "draft 2.6",
        "Of two equal requests at one moment, one is carried out.",
        refusals.concurrent_once,
    ),
    Statement(
        "concurrent-conflict",
        _SHOULD,
        "draft 2.6, 2.7",
        "A retry that comes while the first request runs is a 409.",
        refusals.concurrent_conflict,
    ),
    Statement(
        "conflict-explained",
        _SHOULD,
        "draft 2.7",
        "That 409 is a problem document, or links to documentation.",
        refusals.conflict_explained,
    ),
    Statement("conflict-retry-after", _INFO, "O-03", "That 409 says when to come back.", refusals.conflict_retry_after),
    Statement(
        "conflict-harmless",
        _SHOULD,
        "draft 2.6",
        "A retry after a 409 gets the answer of the request that ran.",
        refusals.conflict_harmless,
    ),
    Statement(
        "reuse-meanwhile",
        _RULE,
        "O-05",
        "A key that comes with another payload while the first request runs is a 422.",
        refusals.reuse_meanwhile,
    ),
    Statement(
        "missing-refused",
        _SHOULD,
        "draft 2.7",
        "Where a key is required, a request without one is a 400.",
        refusals.missing_refused,
    ),
    Statement(
        "missing-explained",
        _SHOULD,
        "draft 2.7",
        "That 400 is a problem document, or links to documentation.",
        refusals.missing_explained,
    ),
    Statement(
        "missing-apart",
        _RULE,
        "Answers",
        "Where no key is required, requests without one are not taken for retries of each other.",
        refusals.missing_not_shared,
    ),
    Statement("no-string", _MUST, "draft 2.1", "What is not a String is refused.", header.no_string),
    Statement(
        "strange-bytes",
        _MUST,
        "draft 2.1",
        "A key with bytes that no String may contain is refused.",
        header.strange_bytes,
    ),
    Statement("two-lines", _MUST, "draft 2.1", "Two field lines in one request are refused.", header.two_lines),
    Statement("empty", _RULE, "H-08", "An empty key is refused, and not taken for no key.", header.empty),
    Statement("case-of-key", _RULE, "H-11", "Keys that differ by case are two keys.", header.case_of_key),
    Statement(
        "case-of-name", _RULE, "H-11, RFC 9110 5.1", "The field's name is the same in upper case.", header.case_of_name
    ),
    Statement("bare-key", _INFO, "H-02", "The key without quotes is taken as the same key.", header.bare_key),
    Statement("parameters", _INFO, "H-05", "Parameters after the String are ignored.", header.parameters),
    Statement("length", _INFO, "H-10", "A key may have 255 octets, and not 256.", header.length),
    Statement(
        "failure-not-kept",
        _RULE,
        "O-08",
        "A 5xx is not kept: a retry is carried out again.",
        replays.failure_not_replayed,
    ),
    Statement(
        "callers-apart",
        _SHOULD,
        "draft 5",
        "A key of one caller neither answers nor refuses another.",
        replays.callers_apart,
    ),
)
