"""OpenAI's own client against the queen: what users' programs do, unchanged.

    openai_client.py BASE_URL MODEL     with the variable OPENAI_API_KEY, if the queen wants a token
"""

import sys

import openai

base_url, model = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=f"{base_url}/v1", max_retries=0, timeout=60)
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


def fails(kind, status, code, call):
    try:
        call()
    except kind as e:
        assert e.status_code == status, e
        assert e.code == code, (e.code, e)
        assert e.message and e.type, e
        return e
    raise AssertionError(f"{kind.__name__} expected")


def chat(**more):
    return client.chat.completions.create(
        **{"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 32} | more
    )


whole = chat()
assert "Paris" in whole.choices[0].message.content, whole
assert whole.choices[0].finish_reason == "stop", whole
assert whole.usage.completion_tokens > 0 and whole.usage.prompt_tokens > 0, whole

chunks = list(chat(stream=True))
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert "Paris" in text, text
assert all(c.usage is None for c in chunks), "nobody asked for usage"
assert chunks[-1].choices[0].finish_reason == "stop", chunks[-1]

chunks = list(chat(stream=True, stream_options={"include_usage": True}))
assert chunks[-1].usage.completion_tokens > 0, chunks[-1]

completion = client.completions.create(model=model, prompt="One, two,", max_tokens=4)
assert completion.choices[0].text and completion.usage.completion_tokens == 4, completion

# The client asks for base64 here, and decodes it.
vectors = client.embeddings.create(model=model, input=["a cat", "a kitten", "an invoice"])
assert [v.index for v in vectors.data] == [0, 1, 2], vectors
assert len({len(v.embedding) for v in vectors.data}) == 1
assert any(x != 0 for x in vectors.data[0].embedding)

models = [m.id for m in client.models.list()]
assert model in models, models
assert client.models.retrieve(model).id == model

missing = fails(
    openai.NotFoundError, 404, "model_not_found", lambda: chat(model="no-such-model")
)
assert missing.param == "model" and missing.body["rbee_code"] == "MODEL_NOT_FOUND", missing.body
# The id that its users are told.
assert missing.request_id == missing.response.headers["x-correlation-id"], missing.request_id
fails(openai.NotFoundError, 404, "model_not_found", lambda: client.models.retrieve("no-such"))
fails(openai.BadRequestError, 400, "INVALID_REQUEST", lambda: chat(model=""))
fails(openai.BadRequestError, 400, "INVALID_REQUEST", lambda: chat(messages=[]))
long = [{"role": "user", "content": "word " * 20_000}]
for stream in [False, True]:
    fails(
        openai.BadRequestError,
        400,
        "context_length_exceeded",
        lambda: chat(messages=long, stream=stream),
    )
try:
    chat(messages=[{"role": "nobody"}], temperature="hot")
except openai.BadRequestError as e:
    assert e.message, e
else:
    raise AssertionError("BadRequestError expected")

if client.api_key != "none":
    stranger = openai.OpenAI(base_url=f"{base_url}/v1", api_key="wrong", max_retries=0)
    refused = fails(openai.AuthenticationError, 401, "invalid_api_key", stranger.models.list)
    assert refused.body["rbee_code"] == "UNAUTHORIZED", refused.body
    # Azure's form of the client shows its key as `api-key`.
    azure = openai.AzureOpenAI(
        base_url=f"{base_url}/v1", api_key=client.api_key, api_version="2024-10-21", max_retries=0
    )
    assert model in [m.id for m in azure.models.list()]
print("all of OpenAI's client works")
