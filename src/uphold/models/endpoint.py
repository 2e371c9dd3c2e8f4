"""Models behind the OpenAI-compatible HTTP protocol: text and log-likelihoods, as from a model that is loaded here.

Works with vLLM, SGLang, llama.cpp and API vendors. Every prompt is a request of its own, so that servers batch as they
like; see `endpoint_reference` for how an endpoint is named.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.core.errors import ModelError, UsageError
from uphold.core.progress import Progress, silent
from uphold.models.endpoint_http import Refusal, Server, Usage, token_counts
from uphold.models.endpoint_reference import Endpoint, is_endpoint, parse_endpoint

if TYPE_CHECKING:
    from uphold.models.decoding import Generated
    from uphold.models.likelihood import OptionScore, Scored

__all__ = [
    "Completion",
    "Endpoint",
    "Usage",
    "complete",
    "instance_seeds",
    "is_endpoint",
    "option_logprobs",
    "parse_endpoint",
]

MOST_STOPS = 4
"""Stop strings that a server takes; the protocol allows no more."""
MOST_SPECIAL = 2
"""Tokens that a server may put before a prompt, such as the start of the text."""
_ABOUT_ECHO = re.compile(r"(?i)echo|logprob")
_Request = tuple[str, str]


class Completion(NamedTuple):
    """What a server's model wrote after a prompt."""

    text: str
    """Up to, and without, the first stop string."""
    input_tokens: int
    """Tokens read; 0 where the server does not say, which `Usage.uncounted` counts."""
    output_tokens: int
    """Tokens written, as `input_tokens`."""
    finish: str
    """Why it ended, in the server's word: mostly `stop` or `length`; empty where it does not say."""

    def generated(self) -> Generated:
        """The same as what a model loaded here returns."""
        from uphold.models.decoding import Generated

        return Generated(self.text, self.input_tokens + self.output_tokens)


def instance_seeds(seed: int, keys: Sequence[str]) -> list[int]:
    """One seed for each instance, in [0, 2^31): the range that every server takes."""
    return [int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:4], "little") >> 1 for key in keys]


def complete(
    endpoint: Endpoint,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] = (),
    usage: Usage | None = None,
    progress: Progress = silent,
    what: str = "",
) -> list[Completion]:
    """Continue each prompt; through `/chat/completions` a prompt is one user message.

    Args:
        endpoint: which model, where.
        prompts: n texts.
        max_new_tokens: the most tokens written per prompt.
        stop: texts that end an answer; a server is told the first `MOST_STOPS`, all are cut at here.
        temperature: 0 for greedy decoding.
        top_p: nucleus of the sampled distribution, in (0, 1].
        seeds: n seeds, see `instance_seeds`; needed for, and sent with, sampled decoding only.
        usage: where tokens and cost are added up.
        progress: called after every answer.
        what: what progress is reported as.

    Returns:
        One `Completion` per prompt, in order.

    Raises:
        UsageError: sampling without one seed per prompt, or a client that cannot be made.
        ModelError: the server cannot be reached, refuses, or keeps failing.
    """
    sampled = temperature > 0
    if sampled and len(seeds) != len(prompts):
        raise UsageError(f"sampling needs one seed per prompt: found {len(seeds)} for {len(prompts)} prompts")
    stops = [text for text in stop if text]
    common: dict[str, Any] = {"model": endpoint.model, "max_tokens": max_new_tokens, "temperature": temperature}
    if stops:
        common["stop"] = stops[:MOST_STOPS]
    if sampled:
        common["top_p"] = top_p

    def ask(job: tuple[str, int | None]) -> Completion:
        prompt, seed = job
        body = common if seed is None else common | {"seed": seed}
        if endpoint.chat:
            answer = server.post("/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]})
        else:
            answer = server.post("/completions", body | {"prompt": prompt})
        read, written = token_counts(answer)
        finish = str(answer["choices"][0].get("finish_reason") or "")
        return Completion(_cut(_text(endpoint, answer), stops), read or 0, written or 0, finish)

    label = what or f"asking {endpoint.model}"
    with Server(endpoint, usage) as server:
        jobs = list(zip(prompts, seeds if sampled else repeat(None), strict=False))
        return server.each(ask, jobs, lambda count: progress(label, count, len(jobs)))


def option_logprobs(
    endpoint: Endpoint,
    requests: Sequence[Sequence[_Request]],
    *,
    usage: Usage | None = None,
    progress: Progress = silent,
    what: str = "",
) -> list[Scored]:
    """Log-likelihood of continuations, as `LikelihoodEngine.score` of a model loaded here.

    A prompt with its continuation is sent as one text to be read back (`echo`) with log-probabilities. As
    lm-evaluation-harness does, one token is asked for that nobody needs: `max_tokens=0` means "no limit" to
    llama-cpp-python, and vLLM counts a token that it does not show. Where the continuation begins is found from the
    texts of the tokens, since `text_offset` counts a start token in vLLM and is always -1 in SGLang; white space at the
    end of a prompt belongs to the continuation. Where the texts do not tell (a token across the border, or tokens that
    do not add up to the text), one more request counts the tokens of the prompt alone and the text is cut after as
    many, which is the rule for models loaded here.

    Args:
        endpoint: which model, where; not in chat mode.
        requests: for each question its (context, continuation) pairs.
        usage: where tokens and cost are added up.
        progress: called after every answer.
        what: what progress is reported as.

    Returns:
        Per question the scores in the order of its pairs, and the tokens that the server read for it.

    Raises:
        UsageError: the endpoint is in chat mode.
        ModelError: the server gives no log-likelihoods of a prompt, or fails as in `complete`.
    """
    from uphold.models.likelihood import Scored

    if endpoint.chat:
        raise UsageError(
            f"'{endpoint.name}' asks for chat, which gives no log-likelihoods of a prompt: leave out chat=true, or use "
            "a generate task"
        )
    distinct = list(dict.fromkeys(request for question in requests for request in question))
    label = what or f"asking {endpoint.model}"
    with Server(endpoint, usage) as server:
        reader = _EchoReader(server)
        scores = server.each(reader.score, distinct, lambda count: progress(label, count, len(distinct)))
    known = dict(zip(distinct, scores, strict=True))
    return [
        Scored(
            tuple(known[request][0] for request in question),
            sum(known[request][1] for request in dict.fromkeys(question)),
            False,
        )
        for question in requests
    ]


class _Echo(NamedTuple):
    """A text read back by a server, token by token."""

    texts: list[str]
    logprobs: list[float | None]
    best: list[float | None]
    """The likeliest token's log-probability at each place."""
    read: int | None
    """Tokens of the text as the server counts them."""
    written: int
    """Tokens at the end that the model added."""


class _EchoReader:
    """Scores continuations out of what a server reads back."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._counts: dict[str, int] = {}

    def score(self, request: _Request) -> tuple[OptionScore, int]:
        """The score of a continuation after its context, and how many tokens the server read for it."""
        from uphold.models.likelihood import OptionScore

        context, continuation = request
        text, head = context + continuation, context.rstrip() or context
        echo = self._echo(text)
        span = _located(echo.texts, text, len(head)) or self._counted(echo, head)
        if span.start >= span.stop:
            raise ModelError(
                f"the answer {continuation!r} has no tokens of its own after {context[-40:]!r}: use a delimiter"
            )
        logprobs, best = echo.logprobs[span.start : span.stop], echo.best[span.start : span.stop]
        if None in logprobs:
            raise ModelError(
                f"{self._where} gives no log-likelihood of {text[:40]!r} after {context[-40:]!r}: a text needs a token "
                "to start from, which this model's tokenizer does not put there"
            )
        if None in best:
            raise self._silent("it returns no top_logprobs")
        known = [(value, top) for value, top in zip(logprobs, best, strict=True) if value is not None]
        greedy = all(top is not None and value >= top for value, top in known)
        return OptionScore(sum(value for value, _ in known), len(known), greedy), echo.read or 0

    def _echo(self, text: str) -> _Echo:
        body = {"prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        answer = self.server.ask("/completions", {"model": self.server.endpoint.model, **body})
        if isinstance(answer, Refusal):
            raise self._silent(answer.said) if _ABOUT_ECHO.search(answer.said) else ModelError(answer.message)
        found = answer["choices"][0].get("logprobs")
        texts, logprobs, tops = (
            (found.get(name) if isinstance(found, dict) else None) or []
            for name in ("tokens", "token_logprobs", "top_logprobs")
        )
        read, written = token_counts(answer)
        written = 1 if written is None else written
        if (
            not texts
            or len(texts) != len(logprobs)
            or (read is not None and len(texts) - written < read - MOST_SPECIAL)
        ):
            raise self._silent("it returns them for the tokens that it writes, at most")
        best = [max(top.values(), default=None) if top else None for top in tops]
        best += [None] * (len(texts) - len(best))
        return _Echo([str(token) for token in texts], logprobs, best, read, written)

    def _counted(self, echo: _Echo, head: str) -> range:
        """The continuation's tokens by number: those that the whole text has more than its head."""
        if not head or echo.read is None:
            raise self._silent("its tokens do not add up to the text, and it does not count them")
        if head not in self._counts:
            body = {"model": self.server.endpoint.model, "prompt": head, "max_tokens": 1, "temperature": 0}
            read, _ = token_counts(self.server.post("/completions", body))
            if read is None:
                raise self._silent("its tokens do not add up to the text, and it does not count them")
            self._counts[head] = read
        end = len(echo.texts) - echo.written
        start = end - (echo.read - self._counts[head])
        if start < 0:
            raise self._silent("it returns fewer of them than the text has tokens")
        return range(start, end)

    @property
    def _where(self) -> str:
        return f"{self.server.endpoint.url} ('{self.server.endpoint.model}')"

    def _silent(self, why: str) -> ModelError:
        return ModelError(
            f"{self._where} gives no log-likelihoods of a prompt ({why}): use a generate task, or a server with echo "
            "and logprobs such as vLLM"
        )


def _located(tokens: Sequence[str], text: str, head: int) -> range | None:
    """The tokens that are `text` behind its first `head` characters; None where the tokens' texts do not tell."""
    for skipped in range(MOST_SPECIAL + 1):
        position, start = 0, None
        for index in range(skipped, len(tokens) + 1):
            if position == head and start is None:
                start = index
            if position == len(text) and start is not None:
                return range(start, index)
            if index == len(tokens) or not text.startswith(tokens[index], position):
                break
            position += len(tokens[index])
    return None


def _text(endpoint: Endpoint, answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    text = choice.get("text")
    if endpoint.chat:
        message = choice.get("message")
        # Null: a model that thought until its tokens were used up, or whose answer was filtered.
        text = (message.get("content") or "") if isinstance(message, dict) else None
    if not isinstance(text, str):
        kind = "message" if endpoint.chat else "text"
        raise ModelError(f"{endpoint.url} gives an answer without {kind}: is it an OpenAI-compatible server?")
    return text


def _cut(text: str, stops: Sequence[str]) -> str:
    """`text` before the first of `stops`."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
