"""The class of lmms-eval's chat interface: messages in which images and videos stand among texts."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

from mmblocks.eval.lmms.decoding import read_decoding
from mmblocks.eval.lmms.questions import read_messages
from mmblocks.eval.lmms.simple import Question, Rounds, SimpleModel, name_place


class ChatModel(SimpleModel):
    """A model of mmblocks: `--model mmblocks --model_args pretrained=MODEL`. lmms-eval asks chat classes for generation only."""

    is_simple = False

    def read_question(self, request: Instance, number: int) -> Question:
        """What `generate_until` asks: (context, doc_to_messages, gen_kwargs, doc_id, task, split)."""
        _, doc_to_messages, _, *place = request.args
        return self._make_question(request, doc_to_messages(self.find_document(*place)), number)

    def read_round(self, rounds: Rounds) -> Question | None:
        """The next round's question, with arguments as in `read_question`; None: it has ended."""
        _, doc_to_messages, _, *place = rounds.request.args
        document = self.find_document(*place)
        if not rounds.outputs:
            return self._make_question(rounds.request, doc_to_messages(document), 1)
        payload = doc_to_messages(
            document,
            round_idx=len(rounds.outputs),
            previous_output=list(rounds.outputs),
            previous_round_info=rounds.info,
        )
        if not isinstance(payload, tuple) or len(payload) != 4:  # messages alone: a task of a single round
            return None
        messages, is_over, outputs, rounds.info = payload
        if is_over:
            rounds.outputs = list(outputs)
            return None
        return self._make_question(rounds.request, messages, 1)

    def _make_question(self, request: Instance, messages: Any, number: int) -> Question:
        _, _, settings, *place = request.args
        return Question(read_messages(messages, request.metadata, name_place(place)), read_decoding(settings), number)
