"""A real OpenAI-style endpoint: a Hugging Face model behind /v1/chat/completions, greedy, one answer at a time.

    python tests/chat_server.py MODEL [PORT] [GGUF FILE IN MODEL]

Prints its port when it is ready and ends with its standard input. For tests and small trials; for anything else take a
real server (vLLM, llama.cpp, …).
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from judges import completion
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer


class Chat:
    """A model and its tokenizer. Questions are given in the tokenizer's chat form, or as they are where it has none."""

    def __init__(self, folder: str, gguf: str | None) -> None:
        sentencepiece = Path(folder) / "tokenizer.model"
        if sentencepiece.exists():
            self.tokenizer = LlamaTokenizer(vocab_file=str(sentencepiece), legacy=True)
        else:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf).eval()
        self.lock = threading.Lock()

    @torch.no_grad()
    def answer(self, messages: list[dict[str, str]], max_tokens: int) -> str:
        text = messages[-1]["content"]
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(str(text), return_tensors="pt", add_special_tokens=False).input_ids
        room = self.model.config.max_position_embeddings
        ids = ids[:, -(room - max_tokens) :]
        with self.lock:
            out = self.model.generate(ids, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def serve(chat: Chat, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = completion(request["model"], chat.answer(request["messages"], request["max_tokens"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    model, port, gguf = [*sys.argv[1:], *[None] * 3][:3]
    assert model is not None, __doc__
    print(serve(Chat(model, gguf), int(port or 0)).server_port, flush=True)
    sys.stdin.read()
