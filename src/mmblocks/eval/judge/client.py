"""A judge: a language model behind an OpenAI-compatible endpoint that is asked about answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mmblocks.errors import ConfigError, JudgeError
from mmblocks.eval.judge.cache import Completion, ReplyCache, compute_digest
from mmblocks.eval.judge.endpoint import OPENAI_URL, Endpoint, EndpointSettings, RequestError, is_address
from mmblocks.eval.tasks import JudgeRequest

Body = Mapping[str, object]
Outcome = Completion | RequestError
DOWN_AFTER = 10
"""So many requests in a row that fail after all their retries: the endpoint is down."""


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Per million tokens, in any currency."""

    prompt: float
    reply: float


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """text, or the fault that there is none. Tokens are those of the reply when it was asked; cached: not asked now."""

    key: str
    text: str | None
    fault: str | None = None
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cached: bool = False


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """What `Judge.ask_all` would send to `url`, the headers apart; nothing where the reply is `cached`."""

    key: str
    url: str
    body: Mapping[str, object]
    cached: bool


@dataclass(slots=True)
class JudgeUsage:
    """Counts of replies; tokens are those that were asked for now."""

    asked: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0

    def add_reply(self, reply: JudgeReply) -> None:
        self.failed += reply.fault is not None
        self.cached += reply.cached
        if not reply.cached and reply.fault is None:
            self.asked += 1
            self.prompt_tokens += reply.prompt_tokens
            self.reply_tokens += reply.reply_tokens

    def compute_cost(self, price: TokenPrice) -> float:
        """In the currency of the price."""
        return (self.prompt_tokens * price.prompt + self.reply_tokens * price.reply) / 1e6


@dataclass(frozen=True)
class Judge:
    """Asks a model; replies are stored in the folder `cache` when they arrive, and are never asked for twice.

    key_variable: the environment variable that holds the key; the key itself is stored nowhere. retries: for too many
    requests, faults of the server, broken connections and timeouts, the first after first_wait_s seconds, each further
    after twice as long or what the endpoint asks for, a minute at most. extra_body: fields of the request's body in addition
    or in place of others; None removes one: {"max_tokens": None, "max_completion_tokens": 2048}.
    """

    model: str
    cache: Path
    base_url: str = OPENAI_URL
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 5
    first_wait_s: float = 1.0
    timeout_s: float = 120.0
    price: TokenPrice | None = None
    extra_body: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_address(self.base_url):
            raise ConfigError(
                f"judge: base_url={self.base_url!r}; write the address of an endpoint, such as http://localhost:8000/v1.",
                settings=["base_url"],
            )
        if self.cache.exists() and not self.cache.is_dir():
            raise ConfigError(f"judge: cache={self.cache} is a file; name a folder.", settings=["cache"])
        least = {"concurrency": 1, "retries": 0, "first_wait_s": 0, "timeout_s": 0.001}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"judge: {name}={getattr(self, name)}; the least is {bound}.", settings=[name])

    def describe_requests(self, requests: Mapping[str, JudgeRequest]) -> Iterator[PlannedRequest]:
        """What `ask_all` would send; nothing is sent, and neither a key nor the package `openai` is needed."""
        cache, url = ReplyCache(self.cache), f"{self.base_url.rstrip('/')}/chat/completions"
        for key, request in requests.items():
            body = self.make_body(request)
            found = cache.find_reply(compute_digest(body, request.attempt))
            yield PlannedRequest(key, url, body, cached=found is not None)

    def ask_all(self, requests: Mapping[str, JudgeRequest]) -> Iterator[JudgeReply]:
        """Replies as they arrive, first those in the cache; requests with the same content are sent once.

        A request without a reply gives a fault. Raises `JudgeError` where further requests are of no use: the endpoint
        cannot be reached, refuses the key, or ten requests in a row fail; `StorageError` where the cache cannot be written.
        """
        cache = ReplyCache(self.cache)
        cache.make_folder()
        pending: dict[str, list[str]] = defaultdict(list)  # digest -> keys
        for key, request in requests.items():
            digest = compute_digest(self.make_body(request), request.attempt)
            if found := cache.find_reply(digest):
                yield _make_reply(key, found, cached=True)
            else:
                pending[digest].append(key)
        if not pending:
            return
        bodies = ((digest, self.make_body(requests[keys[0]])) for digest, keys in pending.items())
        with (
            self._connect() as endpoint,
            closing(_ask_concurrently(endpoint, cache, bodies, self.concurrency)) as outcomes,
        ):
            for digest, outcome in outcomes:
                first, *others = pending[digest]
                yield _make_reply(first, outcome, cached=False)
                yield from (_make_reply(key, outcome, cached=isinstance(outcome, Completion)) for key in others)

    def make_body(self, request: JudgeRequest) -> dict[str, object]:
        """The body of the HTTP request."""
        body = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            **self.extra_body,
        }
        return {name: value for name, value in body.items() if value is not None}

    @contextmanager
    def _connect(self) -> Iterator[Endpoint]:
        settings = EndpointSettings(self.base_url, self.key_variable, self.retries, self.first_wait_s, self.timeout_s)
        endpoint = Endpoint.connect(settings)
        try:
            yield endpoint
        finally:
            endpoint.close()


def _ask_concurrently(
    endpoint: Endpoint, cache: ReplyCache, bodies: Iterator[tuple[str, Body]], concurrency: int
) -> Generator[tuple[str, Outcome], None, None]:
    """(digest, outcome) as they arrive. When it is closed or fails, it waits for the replies under way, which are stored."""
    failed_in_row = 0

    def ask_one(digest: str, body: Body) -> tuple[str, Outcome]:
        try:
            completion = endpoint.ask(body)
        except RequestError as fault:
            return digest, fault
        cache.store_reply(digest, body, completion)
        return digest, completion

    with ThreadPoolExecutor(concurrency, thread_name_prefix="judge") as pool:
        running: set[Future[tuple[str, Outcome]]] = set()
        try:
            while True:
                running |= {pool.submit(ask_one, *asked) for asked in islice(bodies, concurrency - len(running))}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    digest, outcome = future.result()
                    failed_in_row = failed_in_row + 1 if _blames_endpoint(outcome) else 0
                    if failed_in_row >= DOWN_AFTER:
                        raise JudgeError(
                            f"The judge at {endpoint.settings.base_url} does not work: {failed_in_row} requests in a row got no "
                            f"reply, the last with: {outcome}. Replies received so "
                            "far are stored: start again later, and only what is missing is asked."
                        )
                    yield digest, outcome
        finally:
            endpoint.stopped.set()


def _blames_endpoint(outcome: Outcome) -> bool:
    return isinstance(outcome, RequestError) and outcome.blames_endpoint


def _make_reply(key: str, outcome: Outcome, *, cached: bool) -> JudgeReply:
    if isinstance(outcome, RequestError):
        return JudgeReply(key, None, str(outcome))
    return JudgeReply(key, outcome.text, None, outcome.prompt_tokens, outcome.reply_tokens, cached)
