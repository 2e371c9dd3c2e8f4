"""An OpenAI-compatible server over a language model small enough to be computed by hand, on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = (" the", " cat", " sat", " on", " a", " mat", ".", " end")
START = "<s>"


def share(before: str, token: str) -> float:
    """P(token | before): the weights 1 to 7 of the eight words, normalised; other words have a weight of 1/8."""

    def weight(word: str) -> float:
        return 1 + hashlib.sha256(f"{before.strip()}|{word.strip()}".encode()).digest()[0] % 7

    own = weight(token) if any(token.strip() == word.strip() for word in WORDS) else 1 / 8
    return own / sum(map(weight, WORDS))


def likeliest(before: str) -> str:
    return max(WORDS, key=lambda word: share(before, word))


def tokenise(text: str) -> list[str]:
    """Words with the white space before them; a full stop is a word."""
    return re.findall(r"\s*(?:\.|[^\s.]+)|\s+$", text)


def logprob(context: str, continuation: str) -> float:
    """By the definition, token by token."""
    tokens, known = tokenise(context + continuation), len(tokenise(context.rstrip()))
    return sum(math.log(share(tokens[at - 1] if at else START, tokens[at])) for at in range(known, len(tokens)))


Reply = tuple[int, dict[str, str], Any]


@dataclass
class Toy:
    """What the server does, and what it saw."""

    style: str = "vllm"
    """`vllm`, `sglang` (no offsets), `sentencepiece` (tokens without their space), `llama.cpp` (no echo), `plain`."""
    start: bool = False
    """Put a start token before every prompt."""
    usage: bool = True
    models: list[str] = field(default_factory=lambda: ["toy"])
    delay: Callable[[str], float] = lambda prompt: 0.0
    replies: list[Reply | None] = field(default_factory=list)
    """Given instead of answers, one each, while there are any; None closes the connection."""
    always: Callable[[dict[str, str], dict[str, Any]], Reply | None] = lambda headers, body: None
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.seen]

    @property
    def prompts(self) -> list[str]:
        return [body.get("prompt") or body["messages"][-1]["content"] for body in self.bodies]

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        head = [START] * self.start + tokenise(prompt)
        most = body.get("max_tokens", body.get("max_completion_tokens"))
        written = self.write(head[-1] if head else START, most, body.get("stop", []), body.get("seed"))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": "".join(written)}
        else:
            echo = body.get("echo", False) and self.style not in ("llama.cpp", "plain")
            choice["text"] = prompt * echo + "".join(written)
            if body.get("logprobs") and self.style != "plain":
                choice["logprobs"] = self.logprobs(head * echo + written, len(head) * (not echo) and head[-1])
        answer: dict[str, Any] = {"object": "text_completion", "model": body["model"], "choices": [choice]}
        if self.usage:
            answer["usage"] = {"prompt_tokens": len(head), "completion_tokens": len(written), "x_extra": 1}
        return answer

    def write(self, before: str, most: int, stop: list[str], seed: int | None) -> list[str]:
        draw, tokens = random.Random(seed), list[str]()
        while len(tokens) < most:
            last = tokens[-1] if tokens else before
            shares = [share(last, word) for word in WORDS]
            tokens.append(likeliest(last) if seed is None else draw.choices(WORDS, shares)[0])
            if any(text in "".join(tokens) for text in stop):
                break
        return tokens

    def logprobs(self, tokens: list[str], before: str | bool) -> dict[str, Any]:
        befores = [before or None, *tokens[:-1]]
        values = [math.log(share(last, token)) if last else None for last, token in zip(befores, tokens, strict=True)]
        shown = [token.strip() or token for token in tokens] if self.style == "sentencepiece" else tokens
        tops = [
            {text: value} | {likeliest(last): math.log(share(last, likeliest(last)))} if last else None
            for last, text, value in zip(befores, shown, values, strict=True)
        ]
        offsets = [sum(map(len, shown[:at])) for at in range(len(shown))]
        if self.style == "sglang":
            offsets = [-1] * len(shown)
        return {"tokens": shown, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    toy: Toy

    def do_GET(self) -> None:
        models = {"data": [{"id": name} for name in self.toy.models]}
        self.reply(200 if self.path == "/v1/models" else 404, {}, models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        toy, headers = self.toy, {name.lower(): value for name, value in self.headers.items()}
        with toy.lock:
            toy.seen.append((self.path, headers, body))
            toy.times.append(time.monotonic())
            toy.now += 1
            toy.most_at_once = max(toy.most_at_once, toy.now)
            scripted = toy.replies.pop(0) if toy.replies else False
        try:
            prompt = body.get("prompt") or body["messages"][-1]["content"]
            time.sleep(toy.delay(prompt))
            given = toy.always(headers, body) if scripted is False else scripted
            if scripted is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            answer = given or (200, {}, toy.answer(self.path, body))
        finally:
            with toy.lock:
                toy.now -= 1
        self.reply(*answer)

    def reply(self, status: int, headers: dict[str, str], content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def serving(toy: Toy) -> Iterator[Toy]:
    """Serve `toy` under `toy.url` while the block runs."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"toy": toy}))
    toy.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield toy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
