"""Answers in the form of OpenAI's chat completions, whole and in chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mmblocks.chat.engine import Piece, Request
from mmblocks.model.generate import Result
from mmblocks.model.generation.results import DrawnToken
from mmblocks.server.token_texts import TokenTexts

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class CompletionWriter:
    """Writes one answer to a client.

    texts: of tokens, where their probabilities are wanted. end_tokens: those that end an answer and are no part of it.
    """

    model: str
    texts: TokenTexts | None = None
    end_tokens: frozenset[int] = frozenset()
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def write_completion(self, request: Request, pieces: Sequence[Piece]) -> dict:
        """The whole answer. pieces: all of them, of all samples."""
        results: dict[int, Result] = {p.sample: p.result for p in pieces if p.result is not None}
        choices = []
        for sample, result in sorted(results.items()):
            tokens = [token for p in pieces if p.sample == sample for token in p.tokens]
            choices.append(
                {
                    "index": sample,
                    "message": {"role": "assistant", "content": result.text, "refusal": None},
                    "logprobs": self._write_log_probs(tokens),
                    "finish_reason": result.finish_reason,
                }
            )
        usage = write_usage(request, list(results.values()))
        return {**self._write_head("chat.completion"), "choices": choices, "usage": usage}

    def write_first_chunks(self, samples: int) -> Iterable[str]:
        """Who speaks, of each sample."""
        for sample in range(samples):
            yield self._write_chunk(sample, {"role": "assistant", "content": ""})

    def write_piece(self, piece: Piece) -> Iterable[str]:
        """Chunks of a piece."""
        log_probs = self._write_log_probs(piece.tokens)
        if piece.text or (log_probs and log_probs["content"]):
            yield self._write_chunk(piece.sample, {"content": piece.text}, log_probs)
        if piece.result is not None:
            yield self._write_chunk(piece.sample, {}, finish_reason=piece.result.finish_reason)

    def write_usage_chunk(self, request: Request, results: Sequence[Result]) -> str:
        """The chunk of `stream_options.include_usage`."""
        usage = write_usage(request, results)
        return format_event({**self._write_head("chat.completion.chunk"), "choices": [], "usage": usage})

    def _write_head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _write_chunk(
        self, sample: int, delta: dict, log_probs: dict | None = None, finish_reason: str | None = None
    ) -> str:
        choice = {"index": sample, "delta": delta, "logprobs": log_probs, "finish_reason": finish_reason}
        return format_event({**self._write_head("chat.completion.chunk"), "choices": [choice]})

    def _write_log_probs(self, tokens: Sequence[DrawnToken]) -> dict | None:
        if self.texts is None:
            return None
        content = []
        for token in (one for one in tokens if one.id not in self.end_tokens):
            top = [self.texts.write_token(*pair) for pair in token.top]
            content.append({**self.texts.write_token(token.id, token.log_prob), "top_logprobs": top})
        return {"content": content, "refusal": None}


def write_usage(request: Request, results: Sequence[Result]) -> dict:
    """Tokens of a prompt, those of visuals among them, and of all answers to it."""
    answer = sum(result.answer_tokens for result in results)
    visual = sum(request.visual_tokens)
    details = {
        "text_tokens": request.prompt_tokens - visual,
        "visual_tokens": visual,
        "visual_tokens_of_each": list(request.visual_tokens),
    }
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": answer,
        "total_tokens": request.prompt_tokens + answer,
        "prompt_tokens_details": details,
    }


def format_event(content: dict) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'), allow_nan=False)}\n\n"
