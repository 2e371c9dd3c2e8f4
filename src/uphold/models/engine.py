"""What evaluating asks of a model, wherever it runs: score continuations, and write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from uphold.models.encode import Encoder
from uphold.models.load import Loaded, default_device

if TYPE_CHECKING:
    from uphold.models.decoding import Generated, Sampling
    from uphold.models.endpoint_reference import Endpoint
    from uphold.models.likelihood import Scored

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384


def default_batch_tokens(device: str | None = None) -> int:
    """Padded tokens per forward pass: what keeps a device of this kind, or this machine's, busy."""
    return CPU_BATCH_TOKENS if (device or default_device()) == "cpu" else GPU_BATCH_TOKENS


class Meter:
    """Counts tokens as they go through a model."""

    def __init__(self, listener: Callable[[], None] | None = None) -> None:
        self.tokens = 0
        """Padding included; for endpoints what the server says it read and wrote."""
        self.requests = 0
        """HTTP requests answered."""
        self.cost: float | None = None
        """Currency units, where an endpoint has prices."""
        self.listener = listener
        """Called after every forward pass or HTTP request."""

    def add(self, tokens: int) -> None:
        """Count the tokens of one forward pass."""
        self.tokens += tokens
        if self.listener is not None:
            self.listener()


class Engine(Protocol):
    """A model that can be asked."""

    @property
    def name(self) -> str:
        """How its user named it."""
        ...

    def score(self, questions: Sequence[Sequence[tuple[str, str]]]) -> list[Scored]:
        """Score the (context, continuation) pairs of each question."""
        ...

    def write(self, prompts: Sequence[str], sampling: Sampling, keys: Sequence[str]) -> list[Generated]:
        """Continue each prompt; `keys` name the instances, for sampled draws."""
        ...


class LocalEngine:
    """A model that is loaded here."""

    def __init__(
        self, loaded: Loaded, batch_tokens: int = 0, encoder: Encoder | None = None, meter: Meter | None = None
    ) -> None:
        """Prepare to ask.

        Args:
            loaded: the model.
            batch_tokens: padded tokens per forward pass; 0 for `default_batch_tokens`.
            encoder: of the model's tokenizer, where one with texts encoded before is at hand.
            meter: counts tokens.
        """
        from uphold.models.generate import GenerationEngine
        from uphold.models.likelihood import LikelihoodEngine

        self.name = loaded.name
        model = (
            loaded.model,
            encoder or Encoder(loaded.tokenizer),
            batch_tokens or default_batch_tokens(),
        )
        self._likelihood = LikelihoodEngine(*model, meter or Meter())
        self._generation = GenerationEngine(*model, meter or Meter())

    def score(self, questions: Sequence[Sequence[tuple[str, str]]]) -> list[Scored]:
        """See `LikelihoodEngine.score`."""
        return self._likelihood.score(questions)

    def write(self, prompts: Sequence[str], sampling: Sampling, keys: Sequence[str]) -> list[Generated]:
        """See `GenerationEngine.write`."""
        return self._generation.write(prompts, sampling, keys)


class EndpointEngine:
    """A model behind an HTTP server."""

    def __init__(self, endpoint: Endpoint, meter: Meter | None = None) -> None:
        """Prepare to ask `endpoint`; `meter` counts requests, tokens and cost."""
        from uphold.models.endpoint import Usage

        self.name = endpoint.name
        self._endpoint, self._meter = endpoint, meter or Meter()
        self._usage = Usage(endpoint.input_price, endpoint.output_price)
        self._seen: tuple[int, int, float | None] = (0, 0, None)
        """Tokens, requests and cost that the meter has heard of."""

    def score(self, questions: Sequence[Sequence[tuple[str, str]]]) -> list[Scored]:
        """See `uphold.models.endpoint.option_logprobs`."""
        from uphold.models.endpoint import option_logprobs

        return option_logprobs(self._endpoint, questions, usage=self._usage, progress=self._count)

    def write(self, prompts: Sequence[str], sampling: Sampling, keys: Sequence[str]) -> list[Generated]:
        """See `uphold.models.endpoint.complete`."""
        from uphold.models.endpoint import complete, instance_seeds

        written = complete(
            self._endpoint,
            prompts,
            max_new_tokens=sampling.max_new_tokens,
            stop=sampling.stop,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seeds=instance_seeds(sampling.seed, keys),
            usage=self._usage,
            progress=self._count,
        )
        return [completion.generated() for completion in written]

    def _count(self, what: str, done: int, total: int, note: str = "") -> None:
        before = self._seen
        self._seen = (self._usage.input_tokens + self._usage.output_tokens, self._usage.requests, self._usage.cost())
        self._meter.requests += self._seen[1] - before[1]
        if self._seen[2] is not None:
            self._meter.cost = (self._meter.cost or 0.0) + self._seen[2] - (before[2] or 0.0)
        self._meter.add(self._seen[0] - before[0])
