"""What OpenAI's own client makes of a queen who refuses.

    openai_refusals.py BASE_URL

Its models: file:overrun and file:away, whose engines answer 429 and 503; file:breaks, whose engine
breaks off; file:m, which is well. Tenant `red` may ask once a minute.
"""

import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=60)


def chat(model, **more):
    messages = [{"role": "user", "content": "x"}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=4, **more)


def fails(kind, statuses, call):
    try:
        call()
    except kind as e:
        assert e.status_code in statuses, e
        assert e.message, e
        return e
    raise AssertionError(f"{kind} expected")


# Whether the only worker is told as overrun or the queen as out of workers is hers to say.
busy = (openai.RateLimitError, openai.InternalServerError)
for model, most in [("file:overrun", 2), ("file:away", 3)]:
    refused = fails(busy, [429, 503], lambda: chat(model))
    after = int(refused.response.headers["retry-after"])
    assert 1 <= after <= most, refused.response.headers

red = {"extra_headers": {"X-Tenant-Id": "red"}}
assert chat("file:m", **red).usage.completion_tokens == 4
limited = fails(openai.RateLimitError, [429], lambda: chat("file:m", **red))
assert limited.code == "rate_limit_exceeded", limited.code
assert 1 <= int(limited.response.headers["retry-after"]) <= 60
nobody = {"extra_headers": {"X-Tenant-Id": "nobody"}}
refused = fails(openai.PermissionDeniedError, [403], lambda: chat("file:m", **nobody))
assert refused.code == "FORBIDDEN", refused.code

try:
    for _ in chat("file:breaks", stream=True):
        pass
except openai.APIError as e:
    assert e.code == "WORKER_FAILED", (e.code, e)
else:
    raise AssertionError("APIError expected")
print("OpenAI's client understands every refusal")
