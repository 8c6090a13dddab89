"""One example for each policy field, as it stands on the page of policy fields; the tests run them.

A field that has none is shown without, and a test names it.
"""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, str] = {
    "enabled": 'IdempotencyPolicy(enabled="TESTING" not in os.environ)',
    "cover": 'IdempotencyPolicy(cover="marked")',
    "methods": 'IdempotencyPolicy(methods={"POST", "PATCH", "PUT"})',
    "required": "IdempotencyPolicy(required=True)",
    "header": 'IdempotencyPolicy(header="X-Request-Key")',
    "aliases": 'IdempotencyPolicy(aliases=("X-Idempotency-Key",))',
    "profile": 'IdempotencyPolicy(profile="strict")',
    "validate": "IdempotencyPolicy(validate=uuid.UUID)",
    "scope": """\
def verified_user(request):
    users = request.header(b"x-verified-user")  # your gateway sets it, and removes what clients send
    if len(users) != 1:
        raise NotAuthenticated("sign in first")
    return users[0].decode()


policy = IdempotencyPolicy(scope=verified_user)""",
    "key": 'IdempotencyPolicy(key=key_from("json:/id"), required=True)',
    "echo_key": "IdempotencyPolicy(echo_key=True)",
    "fingerprint_parts": 'IdempotencyPolicy(fingerprint_parts=("method", "path", "body"))',
    "session_identity": 'IdempotencyPolicy(session_identity="account")',
    "credential_headers": 'IdempotencyPolicy(credential_headers=("Authorization", "X-Device-Token"))',
    "scope_by_host": "IdempotencyPolicy(scope_by_host=True)",
    "scope_by_route": "IdempotencyPolicy(scope_by_route=True)",
    "application": 'IdempotencyPolicy(application="billing")',
    "fingerprint": 'IdempotencyPolicy(fingerprint="json")',
    "fingerprint_headers": 'IdempotencyPolicy(fingerprint_headers=("Api-Version",))',
    "fingerprint_ignore": 'IdempotencyPolicy(fingerprint="json", fingerprint_ignore=("/sent_at",))',
    "secret": 'IdempotencyPolicy(secret=os.environ.get("DIGEST_KEY", "a secret of this service").encode())',
    "max_live_keys": "IdempotencyPolicy(max_live_keys=1_000)",
    "lease": "IdempotencyPolicy(lease=60)",
    "ttl": "IdempotencyPolicy(ttl=timedelta(days=7))",
    "error_ttl": "IdempotencyPolicy(error_ttl=timedelta(minutes=5))",
    "max_run": "IdempotencyPolicy(max_run=timedelta(hours=2))",
    "wait": "IdempotencyPolicy(wait=5)",
    "max_wait": "IdempotencyPolicy(max_wait=10)",
    "max_waiting": "IdempotencyPolicy(wait=5, max_waiting=8)",
    "respond_within": "IdempotencyPolicy(respond_within=2)",
    "record_within": "IdempotencyPolicy(record_within=timedelta(minutes=10))",
    "stream_grace": "IdempotencyPolicy(stream_grace=30)",
    "on_failed": 'IdempotencyPolicy(on_failed="replay")',
    "on_abandoned": 'IdempotencyPolicy(on_abandoned="reject")',
    "max_attempts": "IdempotencyPolicy(max_attempts=5)",
    "ledger": 'IdempotencyPolicy(max_attempts=5, ledger=create_engine("sqlite:///shop.db").begin)',
    "fail_open": "IdempotencyPolicy(fail_open=True)",
    "store": """\
def store_queued(response):
    return True if response.status == 409 and response.body == b"queued" else None


IdempotencyPolicy(store=store_queued)""",
    "drop_headers": 'IdempotencyPolicy(drop_headers=("Set-Cookie", "X-Trace-Id"))',
    "keep_headers": 'IdempotencyPolicy(keep_headers=("X-Served-By",))',
    "redact": """\
def without_body(response):
    return replace(response, body=b"{}")


IdempotencyPolicy(redact=without_body)""",
    "encryption": """\
keys = EncryptionKeys({"2026-11": os.urandom(32)})  # in production: from your secrets, the same in each process

IdempotencyPolicy(encryption=keys)""",
    "plain_records": 'IdempotencyPolicy(encryption=keys, plain_records="accept")',
    "max_request_bytes": "IdempotencyPolicy(max_request_bytes=50 * 1024 * 1024)",
    "max_response_bytes": "IdempotencyPolicy(max_response_bytes=4 * 1024 * 1024)",
    "max_stage_bytes": "IdempotencyPolicy(max_stage_bytes=256 * 1024)",
    "spool_bytes": "IdempotencyPolicy(spool_bytes=256 * 1024)",
    "strict_stages": "IdempotencyPolicy(strict_stages=True)",
    "docs_url": 'IdempotencyPolicy(docs_url="https://docs.shop.example/problems/{type}")',
    "problem_headers": 'IdempotencyPolicy(problem_headers={"Access-Control-Allow-Origin": "https://app.example"})',
    "on_replay": """\
def marked(response, request):
    return replace(response, headers=[*response.headers, (b"x-replayed-by", b"shop")])


IdempotencyPolicy(on_replay=marked)""",
    "compat": 'IdempotencyPolicy(compat="stripe")',
    "render_problem": """\
def as_our_errors(problem):
    body = json.dumps({"error": problem.name, "message": problem.detail}).encode()
    headers = [(b"content-type", b"application/json")]
    if problem.retry_after is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_after))
    return Response(problem.status, headers, body)


IdempotencyPolicy(render_problem=as_our_errors)""",
    "on_event": """\
def count_event(event):
    print(type(event).__name__)


IdempotencyPolicy(on_event=count_event)""",
}
