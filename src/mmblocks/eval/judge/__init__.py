"""Judges: language models behind OpenAI-compatible endpoints that score answers. Nothing is sent without a `Judge`."""

from mmblocks.eval.judge.client import Judge, JudgeReply, JudgeUsage, PlannedRequest, TokenPrice
from mmblocks.eval.judge.documents import Judgement, judge_documents, make_requests
from mmblocks.eval.judge.references import METRIC, ReferenceJudge

__all__ = [
    "METRIC",
    "Judge",
    "JudgeReply",
    "JudgeUsage",
    "Judgement",
    "PlannedRequest",
    "ReferenceJudge",
    "TokenPrice",
    "judge_documents",
    "make_requests",
]
