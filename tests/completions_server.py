"""An OpenAI-style completions endpoint with top log-probabilities, in a process of its own.

    python tests/completions_server.py MODE [FOLDER [KEY=VALUE ...]]

MODE is vllm or llama.cpp (the two layouts), bare (no log-probabilities), slow (a second each), long (refuses texts),
refusing (refuses the request), empty (a completion without tokens), ids (vLLM with --return-tokens-as-token-ids),
lone-ids (the same without /detokenize), raw (pieces as in a tokenizer's file), foreign (names of special tokens of many
models) or model (a model of transformers in FOLDER, vLLM's layout). Prints its port when it is ready and ends with its
standard input. port=N is the port, and any other KEY=VALUE is said about the model in the list of models. Without a
model, the most likely token after a text of n words is WORDS[n % 4].
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = (" Paris", "1987", "<|end_of_text|>", "\ufffd")
OTHERS = (" London", "</s>", "\u00e9")
NAMES = {
    "ids": ("token_id:3", "token_id:0", "token_id:1", "token_id:2"),
    "lone-ids": ("token_id:3", "token_id:0", "token_id:1", "token_id:2"),
    "raw": ("\u0120Paris", "\u2581London", "</s>"),
    "foreign": ("<|im_end|>", "<end_of_turn>", "[INST]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<unk>", " Paris"),
}
PIECES = (" Paris", "</s>", "x", "<|im_end|>")
"""What the ids 0 to 3 spell. A text of ids loses its first space, as with SentencePiece."""


def candidates(mode: str, prompt: str, folder: str | None) -> list[tuple[str, float]]:
    """(token, log-probability), in no order."""
    if mode in NAMES:
        return [(name, -float(place)) for place, name in enumerate(NAMES[mode])]
    if folder is None:
        return [(WORDS[len(prompt.split()) % 4], -0.5), *((token, -1.0 - n) for n, token in enumerate(OTHERS))]
    import torch

    model, tokenizer = load(folder)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        top = torch.log_softmax(model(ids).logits[0, -1], -1).topk(20)
    return [
        (tokenizer.decode([id]), value) for id, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def load(folder: str, loaded: list[Any] = []) -> Any:  # noqa: B006
    """The model, once."""
    if not loaded:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        loaded += AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    return loaded


def answer(mode: str, folder: str | None, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    if mode == "long":
        message = "This model's maximum context length is 8 tokens"
        return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
    if mode == "slow":
        time.sleep(1)
    if mode == "refusing":
        return 400, {"error": {"message": "logprobs: 20 exceeds the limit of 5"}}
    top = candidates(mode, request["prompt"], folder)[: request["logprobs"]]
    logprobs: dict[str, Any] | None = {"tokens": [top[0][0]], "top_logprobs": [dict(top)]}
    if mode == "bare":
        logprobs = None
    if mode == "empty":
        logprobs = {"tokens": [], "top_logprobs": []}
    if mode == "llama.cpp":
        entries = [{"token": token, "bytes": list(token.encode()), "logprob": value} for token, value in top]
        logprobs = {"content": [{**entries[0], "top_logprobs": entries}]}
    choice = {"index": 0, "text": top[0][0], "finish_reason": "length", "logprobs": logprobs}
    return 200, {"id": "1", "object": "text_completion", "created": 0, "model": request["model"], "choices": [choice]}


def main(mode: str, folder: str | None = None, *about: str) -> None:
    folder = folder or None
    settings = dict(pair.split("=") for pair in about)
    port = int(settings.pop("port", 0))
    model = {"id": "stub", "object": "model", "created": 0} | settings

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [model | {"created": time.time_ns()}]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/detokenize" and mode == "ids":
                return self._send(200, {"prompt": "".join(PIECES[id] for id in request["tokens"]).lstrip(" ")})
            if self.path != "/v1/completions":
                return self._send(404, {"detail": "Not Found"})
            self._send(*answer(mode, folder, request))

        def _send(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    if folder is not None:
        load(folder)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
