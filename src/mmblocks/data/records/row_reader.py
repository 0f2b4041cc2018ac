"""Records of every source as conversations: which keys hold what, and how a conversation may be written.

A conversation column holds turns as LLaVA ({"from", "value"}), as chat-completions ({"role", "content"}, content a text
or a list of parts) or as pairs ({"user", "assistant"}) write them, or any of these as JSON text. Without one there are a
question and an answer (Alpaca's, ms-swift's and TRL's names too). Texts hold a marker per visual, <image> or <video>;
where no marker is written, the visuals stand in front of the first question. A key that nothing reads is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmblocks.conversation import Conversation, Visual
from mmblocks.data.records.columns import Columns
from mmblocks.data.records.content_parts import convert_parts
from mmblocks.data.records.json_records import parse_json, refuse_duplicates
from mmblocks.data.records.named_media import KINDS, MediaRoots
from mmblocks.data.records.turns import Placement, Turn, read_turn, read_turns, replace_markers
from mmblocks.errors import DataError
from mmblocks.keys import HISTORY, INPUT, describe_unread_keys, find_unread_keys, is_empty, refuse_unread_keys
from mmblocks.shapes import VisualKind


@dataclass(frozen=True, slots=True)
class RowReader:
    """How rows become conversations."""

    columns: Columns
    roots: MediaRoots
    placement: Placement = "lone_first"

    def read(self, row: object, origin: str) -> Conversation:
        """One row as a conversation, its media not opened. Raises `DataError` that begins with `origin`."""
        row, columns = self.clean_row(row, origin), self.columns
        column, turns = columns.find_value(row, "conversation", origin)
        if is_empty(turns) and (turns is None or not is_empty(columns.find_value(row, "answer", origin)[1])):
            return self._read_question_answer(row, origin)
        columns.refuse_unread_keys(row, (*columns.names["conversation"], *self.common_columns), origin)
        return self.make_conversation(self.to_turns(turns, origin, column), row, origin)

    def clean_row(self, row: object, origin: str) -> Mapping[str, Any]:
        """A row as an object without the keys that are ignored, and without the usual columns that others replace."""
        if not isinstance(row, Mapping):
            raise DataError(f"{origin}: a record is an object with its columns, not {row!r:.80}.")
        kept: Mapping[str, Any] = self.columns.remove_ignored(row)
        refuse_duplicates(kept, origin)
        replaced = self.columns.unread_defaults
        return {key: value for key, value in kept.items() if key not in replaced} if replaced else kept

    @property
    def common_columns(self) -> tuple[str, ...]:
        """What is read beside every form of conversation."""
        return tuple(name for kind in (*KINDS, "system") for name in self.columns.names[kind])

    def to_turns(self, turns: object, origin: str, column: str) -> list[Turn]:
        """Turns in any of the forms of a conversation column: JSON text and columns of columns too."""
        where = f"{origin}: {column!r}"
        if isinstance(turns, str):
            turns = parse_json(turns, where)
        if isinstance(turns, Mapping) and turns and all(isinstance(v, list) for v in turns.values()):
            if len({len(values) for values in turns.values()}) > 1:
                raise DataError(f"{where}: its columns {', '.join(turns)} are not of one length.")
            turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
        turns = self.columns.remove_ignored(turns)
        if not isinstance(turns, list) or not any(isinstance(turn, Mapping) and "assistant" in turn for turn in turns):
            return read_turns(turns, origin, column)
        apart = []  # questions and answers in pairs
        for i, pair in enumerate(turns):
            if not isinstance(pair, Mapping) or not {"user", "assistant"} <= pair.keys():
                raise DataError(f"{origin}, turn {i}: {pair!r:.80}; write {{'user': ..., 'assistant': ...}}.")
            refuse_duplicates(pair, f"{origin}, turn {i}")
            refuse_unread_keys(pair, ("user", "assistant"), f"{origin}, turn {i}", "turn")
            apart += [{"from": "human", "value": pair["user"]}, {"from": "gpt", "value": pair["assistant"]}]
        return read_turns(apart, origin, column)

    def make_conversation(self, turns: Sequence[Turn], row: Mapping[str, Any], origin: str) -> Conversation:
        """Turns with the system text and the media of their row."""
        media: dict[VisualKind, Sequence[Visual]] = {}
        for kind in KINDS:
            column, named = self.columns.find_value(row, kind, origin)
            media[kind] = [] if is_empty(named) else self.roots.make_visuals(kind, named, origin, column)
        column, system = self.columns.find_value(row, "system", origin)
        if not is_empty(system):
            turns = _prepend_system(turns, column, system, origin)
        if any(isinstance(turn.content, list) for turn in turns):
            return convert_parts(turns, media, self.roots, origin)
        return replace_markers(turns, media, origin=origin, placement=self.placement)

    # A question and an answer ---------------------------------------------------------------------------------------

    def _read_question_answer(self, row: Mapping[str, Any], origin: str) -> Conversation:
        columns = self.columns
        column, answer = columns.find_value(row, "answer", origin)
        if answer is None:
            first, *others = columns.names["conversation"]
            unread = find_unread_keys(row, columns.read)
            raise DataError(
                f"{origin}: there is no text to learn: {first!r} is {row.get(first)!r}, and neither {', '.join(others)} nor "
                f"{', '.join(columns.names['answer'])} holds any. Its columns: {', '.join(row)}."
                + (f" And {describe_unread_keys(unread, columns.read)}" if unread else "")
            )
        question, used = self.read_question(row, origin)
        columns.refuse_unread_keys(row, (*columns.names["answer"], *used, *self.common_columns), origin)
        turns = [*question, self.read_answer(answer, column, origin, len(question))]
        conversation = self.make_conversation(turns, row, origin)
        if not isinstance(columns.find_value(row, "question", origin)[1], list):
            return conversation
        # A prompt that is a list of turns is TRL's, which learns the completion alone.
        *prompt, completion = conversation.messages
        prompt = [replace(message, learn=message.role != "assistant") for message in prompt]
        return replace(conversation, messages=(*prompt, completion))

    def read_question(self, row: Mapping[str, Any], origin: str) -> tuple[list[Turn], tuple[str, ...]]:
        """The turns up to the answer, and the keys that they were read from."""
        column, question = self.columns.find_value(row, "question", origin)
        used = (*self.columns.names["question"], HISTORY)
        if column == "instruction":
            used, more = (*used, INPUT), row.get(INPUT)
            if not is_empty(more):
                if not isinstance(more, str) or not isinstance(question, str):
                    raise DataError(
                        f"{origin}: {INPUT!r} is {more!r:.80}; write a text that belongs to an 'instruction'."
                    )
                question = f"{question}\n{more}" if question else more
        history = row.get(HISTORY)
        earlier: list[dict[str, Any]] = []
        for i, pair in enumerate([] if is_empty(history) else history if isinstance(history, list) else [history]):
            if not isinstance(pair, list) or len(pair) != 2:
                raise DataError(f"{origin}: {HISTORY!r}, entry {i}: {pair!r:.80}; write [question, answer].")
            earlier += [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]
        if isinstance(question, list):
            before = read_turns(earlier, f"{origin}: {HISTORY!r}") if earlier else []
            return [*before, *self.to_turns(question, origin, column)], used
        last = {"from": "human", "value": self.columns.ask if question is None else question}
        return read_turns([*earlier, last], origin), used

    def read_answer(self, answer: object, column: str, origin: str, number: int) -> Turn:
        """Turn `number`, the answer of a column: a text, a turn, or a list that holds one turn."""
        if not isinstance(answer, list | Mapping):
            return read_turn({"from": "gpt", "value": answer}, f"{origin}, turn {number}")
        turns = self.to_turns([answer] if isinstance(answer, Mapping) else answer, f"{origin}: {column!r}", column)
        if [turn.role for turn in turns] != ["assistant"]:
            raise DataError(f"{origin}: {column!r} holds {len(turns)} turns; write one answer.")
        return turns[0]


def _prepend_system(turns: Sequence[Turn], column: str, system: object, origin: str) -> Sequence[Turn]:
    """Turns behind the system text of their record, which may stand only once."""
    if not isinstance(system, str):
        raise DataError(f"{origin}: {column!r} is {system!r:.80}; write a text.")
    if not turns or turns[0].role != "system":
        return [Turn("system", system), *turns]
    first = turns[0].content
    if not isinstance(first, str):
        first = "".join(str(part.get("text")) for part in first if isinstance(part, Mapping))
    if first.strip() != system.strip():
        raise DataError(f"{origin}: {column!r} and the first turn are two different system texts; keep one.")
    return turns
