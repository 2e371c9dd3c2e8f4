"""Requests to an endpoint: several at once, tried again where that can help, and counted.

Plain HTTP rather than the `openai` package: its waits between tries can be neither interrupted nor counted, it sends
organisation and project ids out of the environment to any server, and it does not check what comes back.
"""

from __future__ import annotations

import email.utils
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from uphold.core.errors import ModelError, UsageError
from uphold.models.endpoint_errors import ServerError, access_error, api_key, one_line, read_error, unknown_model
from uphold.models.endpoint_reference import FORM, Endpoint

if TYPE_CHECKING:
    import ssl

    import httpx2

BACKOFF = 0.5
"""Seconds before the second try, give or take a quarter; doubled for each further one."""
MOST_BACKOFF = 30.0
MOST_WAIT = 120.0
"""The longest Retry-After, in seconds, that is waited for."""
CONNECT_TIMEOUT = 10.0
_BUSY = (408, 409, 425, 429)
_REPLACED: Mapping[str, str | None] = {"max_tokens": "max_completion_tokens", "stop": None}
"""Fields that newer OpenAI models refuse, and what they take instead; `stop` may go, since answers are cut here too."""
T = TypeVar("T")
R = TypeVar("R")


class Usage:
    """What a server has read and written so far; may be shared between threads."""

    def __init__(self, input_price: float | None = None, output_price: float | None = None) -> None:
        """Start at nothing; prices are in currency units per million tokens."""
        self.requests = 0
        """Requests answered."""
        self.retries = 0
        """Tries that failed and were followed by another."""
        self.input_tokens = 0
        self.output_tokens = 0
        self.uncounted = 0
        """Answers without token counts: tokens and cost are too low by these."""
        self._prices = (input_price, output_price)
        self._lock = threading.Lock()

    def add(self, input_tokens: int | None, output_tokens: int | None) -> None:
        """Count one answer; None where the server did not say."""
        with self._lock:
            self.requests += 1
            self.uncounted += input_tokens is None or output_tokens is None
            self.input_tokens += input_tokens or 0
            self.output_tokens += output_tokens or 0

    def add_retry(self) -> None:
        """Count one more try."""
        with self._lock:
            self.retries += 1

    def cost(self) -> float | None:
        """Currency units spent; None where no price was given."""
        if self._prices == (None, None):
            return None
        read, written = (price or 0.0 for price in self._prices)
        return (self.input_tokens * read + self.output_tokens * written) / 1e6

    def __repr__(self) -> str:
        shown = ("requests", "retries", "input_tokens", "output_tokens", "uncounted")
        return f"Usage({', '.join(f'{name}={getattr(self, name)}' for name in shown)}, cost={self.cost()})"


class Refusal(NamedTuple):
    """A server cannot answer a request as it is."""

    message: str
    """What to tell the user."""
    said: str
    """The server's own words, in one line."""


class _Trouble(NamedTuple):
    """Why a try failed that may go better the next time."""

    reason: str
    wait: float | None = None
    """Seconds that the server asks for."""


class _Failure(NamedTuple):
    """What stopped a thread's work on one item."""

    error: BaseException


class _StoppedError(Exception):
    """Nobody waits for the answer any longer."""


class Server:
    """Requests to one endpoint, `endpoint.concurrency` of them at once; to be used in a `with` block."""

    def __init__(self, endpoint: Endpoint, usage: Usage | None = None) -> None:
        """Prepare to ask; nothing is sent yet.

        Raises:
            UsageError: httpx2 is missing, or the URL or the key cannot be used.
        """
        self.endpoint = endpoint
        self.usage = usage or Usage(endpoint.input_price, endpoint.output_price)
        self._client = _client(endpoint)
        self._users = 1
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._answered = False
        self._hold_until = 0.0
        self._refused_fields: set[str] = set()
        self._jitter = random.Random()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._leave()

    def each(self, ask: Callable[[T], R], items: Sequence[T], report: Callable[[int], None]) -> list[R]:
        """`ask` of every item, in the items' order; `report` is told, in the calling thread, how many are done.

        The threads are daemons and the caller only waits for their results: whatever interrupts it is raised at once,
        nothing further is sent, and answers under way are not waited for.
        """
        todo: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, R | _Failure]] = queue.SimpleQueue()
        for numbered in enumerate(items):
            todo.put(numbered)

        def work() -> None:
            try:
                while not self._stop.is_set():
                    index, item = todo.get_nowait()
                    try:
                        done.put((index, ask(item)))
                    except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                        done.put((index, _Failure(error)))
                        self._stop.set()
            except queue.Empty:
                pass
            finally:
                self._leave()

        for _ in range(min(self.endpoint.concurrency, len(items))):
            with self._lock:
                self._users += 1
            threading.Thread(target=work, daemon=True).start()
        results: dict[int, R] = {}
        while len(results) < len(items):
            index, result = done.get()
            if isinstance(result, _Failure):
                raise result.error
            results[index] = result
            report(len(results))
        return [results[index] for index in range(len(items))]

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request; `choices` holds one mapping at least.

        Raises:
            ModelError: as in `ask`, or the server refuses the request.
        """
        answer = self.ask(path, body)
        if isinstance(answer, Refusal):
            raise ModelError(answer.message)
        return answer

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | Refusal:
        """As `post`; tried again after busy signals, server errors, timeouts and lost connections.

        Raises:
            ModelError: there is no such server, it refuses access or does not know the model, or it keeps failing.
        """
        reason = ""
        for failed in range(self.endpoint.retries + 1):
            self._wait(self._hold_until - time.monotonic())
            outcome = self._try(path, body)
            if not isinstance(outcome, _Trouble):
                if not isinstance(outcome, Refusal):
                    self._answered = True
                    self.usage.add(*token_counts(outcome))
                return outcome
            reason = outcome.reason
            if failed < self.endpoint.retries:
                self.usage.add_retry()
                self._wait(self._pause(outcome, failed))
        raise ModelError(
            f"{self.endpoint.url} failed {self.endpoint.retries + 1} times, the last: {reason}; type the same command "
            "again later, or set timeout (seconds), retries or a lower concurrency in the endpoint"
        )

    def models(self) -> list[str]:
        """The model ids that the server offers; none where it does not say."""
        import httpx2

        try:
            offered = self._client.get(self.endpoint.address("/models")).json()["data"]
            return [str(entry["id"]) for entry in offered]
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            return []

    def _leave(self) -> None:
        """The last user closes the connections: a socket closed under a thread that reads it may become another's."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._client.close()

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(max(0.0, seconds)):
            raise _StoppedError

    def _pause(self, trouble: _Trouble, failed: int) -> float:
        """Seconds until the next try; what the server asks for holds for all threads."""
        backoff = min(MOST_BACKOFF, BACKOFF * 2.0**failed) * self._jitter.uniform(0.75, 1.25)
        if trouble.wait is None:
            return backoff
        if trouble.wait > MOST_WAIT:
            raise ModelError(
                f"{self.endpoint.url} asks to wait {trouble.wait:.0f} s before the next request ({trouble.reason}): "
                "type the same command again after that time"
            )
        with self._lock:
            self._hold_until = max(self._hold_until, time.monotonic() + trouble.wait)
        return max(trouble.wait, backoff)

    def _try(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | Refusal | _Trouble:
        import httpx2

        refused = self._refused_fields.copy()
        names = {field: _REPLACED[field] if field in refused else field for field in body}
        sent = {name: body[field] for field, name in names.items() if name is not None}
        try:
            response = self._client.post(self.endpoint.address(path), json=sent)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return self._unreachable(error)
        except httpx2.TimeoutException:
            return _Trouble(f"nothing came within {self.endpoint.timeout:g} s")
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return _Trouble(f"the connection failed ({_reason(error)})")
        answer, said = _json(response), read_error(response.text) if not response.is_success else ServerError()
        if response.is_success and _has_choice(answer):
            return dict(answer)
        if response.is_success and isinstance(answer, dict) and answer.get("error"):
            said = read_error(response.text)
        elif response.is_success:
            return self._unreadable(response.text)
        field = said.unsupported(sent.keys() & _REPLACED.keys())
        if field is not None:
            self._refused_fields.add(field)
            return self._try(path, body)
        status = (said.status or 500) if response.is_success else response.status_code
        return self._problem(path, status, said, response.headers)

    def _unreachable(self, error: Exception) -> _Trouble:
        """What has never worked is wrong; what has worked before may work again."""
        if self._answered:
            return _Trouble(f"it cannot be reached ({_reason(error)})")
        raise ModelError(
            f"nothing answers at {self.endpoint.url} ({_reason(error)}): start the server, or correct host and port"
        ) from None

    def _unreadable(self, text: str) -> _Trouble:
        reason = f"its answer {one_line(text)!r} is not one of the OpenAI protocol"
        if self._answered:
            return _Trouble(reason)
        raise ModelError(f"{self.endpoint.url} is no OpenAI-compatible server, {reason}: correct the URL as {FORM}")

    def _problem(self, path: str, status: int, said: ServerError, headers: Mapping[str, str]) -> Refusal | _Trouble:
        """What an error status means: worth another try, or an error to raise."""
        url, model, words = self.endpoint.url, self.endpoint.model, said.message or "it does not say why"
        if status == 429 and said.kind == "insufficient_quota":
            raise ModelError(f"{url} says that the account has no credit left: top it up, then type the same again")
        if status in _BUSY or (status >= 500 and status != 501):
            return _Trouble(f"{status}, {words}", _retry_after(headers))
        if status in (401, 403):
            raise access_error(url, status)
        if 300 <= status < 400:
            place = one_line(headers.get("location", "")) or "another place"
            raise ModelError(f"{url} sends on to {place} ({status}): type the URL that answers itself")
        if status == 404 or said.is_about_model:
            offered = self.models()
            if offered and model not in offered:
                raise unknown_model(url, model, offered)
        if status == 404:
            other = "leave out chat=true" if self.endpoint.chat else "add ?chat=true before the #"
            return Refusal(
                f"{url} has no {path} for '{model}' (404, {words}): {other}, or correct the URL; most end in /v1", words
            )
        return Refusal(f"{url} refuses a request to '{model}' ({status}): {words}", words)


def token_counts(answer: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens read and written for an answer; None where it does not say."""
    usage = answer.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if isinstance(count, int) else None for count in counts)
    return read, written


def _client(endpoint: Endpoint) -> httpx2.Client:
    try:
        import httpx2
    except ImportError:
        raise UsageError("an endpoint needs the package httpx2: type pip install 'uphold[api]'") from None
    try:
        httpx2.URL(endpoint.url)
    except httpx2.InvalidURL as error:
        raise UsageError(f"'{endpoint.url}' is not a URL ({error}): type it as {FORM}") from None
    headers = {"User-Agent": "uphold", "Accept": "application/json"}
    if api_key():
        headers["Authorization"] = f"Bearer {api_key()}"
    most = endpoint.concurrency
    return httpx2.Client(
        headers=headers,
        verify=_tls(),
        timeout=httpx2.Timeout(endpoint.timeout, connect=min(CONNECT_TIMEOUT, endpoint.timeout)),
        limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
    )


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """The certificates of this machine, read once: that takes longer than most requests."""
    import httpx2

    return httpx2.create_ssl_context()


def _has_choice(answer: Any) -> bool:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict)


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: given as a number, or as the date to wait for."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _reason(error: Exception) -> str:
    return one_line(str(error)) or type(error).__name__
