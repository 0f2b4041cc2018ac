"""Which keys of data are read, which are harmless, and which are refused because nothing would read them.

Every key of a record, of a turn and of a part of a turn is one of the three, so that nothing that people wrote is lost
without a word. A key that holds nothing (null, "", [], {}) loses nothing: tables fill the keys that a row lacks so.
"""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from mmblocks.errors import DataError

Level = Literal["record", "turn", "part"]

USUAL_KEYS: Mapping[str, tuple[str, ...]] = {
    "conversation": ("conversations", "messages", "conversation", "texts"),
    "question": ("question", "query", "prompt", "instruction"),
    "answer": ("answer", "caption", "txt", "response", "completion", "output"),
    "system": ("system",),
    "image": ("image", "images"),
    "video": ("video", "videos"),
}
"""What columns are called where a user names none. Two of a kind in one record must say the same."""
INPUT, HISTORY = "input", "history"
"""What stands beside a question: the second half of an instruction, and the pairs of texts before it."""
ANSWERS = (*USUAL_KEYS["conversation"], *USUAL_KEYS["answer"], "chosen", "rejected")
"""Of these, every record has one."""

_NAMES = "id _id idx index uid uuid key sample_id question_id image_id video_id conversation_id doc_id record_id prompt_id qid"
_ORIGINS = (
    "source dataset dataset_name data_source source_dataset origin_dataset origin_split ds_name subset split model "
    "language lang license author date timestamp created created_at metadata meta"
)
_KINDS = "task task_type task_name question_type category domain subject topic capability difficulty type choice_list"
_SIZES = "width height width_list height_list image_width image_height duration num_frames"
_RATINGS = (
    "relevance_ratings relevance_min visual_dependency_ratings visual_dependency_min image_correspondence_ratings "
    "image_correspondence_min formatting_ratings formatting_min"
)
_ADDED = "__key__ __url__ __local_path__ __index_level_0__"
HARMLESS_KEYS: Mapping[Level, frozenset[str]] = {
    "record": frozenset(f"{_NAMES} {_ORIGINS} {_KINDS} {_SIZES} {_RATINGS} {_ADDED}".split()),
    "turn": frozenset(
        [
            "id",
            "idx",
            "index",
            "turn",
            "turn_id",
            "turn_identifier",
            "source",
            "model",
            "language",
            "lang",
            "timestamp",
            "date",
            "metadata",
            "meta",
        ]
    ),
    "part": frozenset({"id"}),
}
"""Names, origins, kinds, sizes and ratings: what the data sets of the field carry beside what is read and shown."""

_TOOLS = "calls of tools are neither shown nor learned"
_THOUGHTS = "thoughts are not written into answers"
_SOUND = "sound is not read"
_BOXES = "boxes are not read; write them into the text"
_PREFERENCES = "preferences are read by the source 'llava_pairs'"
_JUDGED = "classes, and labels of single answers, are not learned"
_TURN = "it belongs to a turn; a record holds a list of turns as 'conversations' or 'messages'"
_EVERYWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("tools", "functions", "tool_calls", "tool_call_id", "function_call", "parallel_tool_calls"), _TOOLS
    ),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking", "thought"), _THOUGHTS),
    **dict.fromkeys(("audio", "audios", "sound", "input_audio"), _SOUND),
    **dict.fromkeys(("objects", "bbox", "boxes"), _BOXES),
    **dict.fromkeys(("label", "kto_tag"), _JUDGED),
    "loss_scale": "an answer is learned or not; write loss: true or false into its turn",
    "detail": "how finely an image is seen is a setting of the visual tokenizer",
}
UNREAD_REASONS: Mapping[Level, Mapping[str, str]] = {
    "record": {
        **_EVERYWHERE,
        **dict.fromkeys(("chosen", "rejected", "rejected_response"), _PREFERENCES),
        **dict.fromkeys(("role", "from", "content", "value"), _TURN),
        "text": "a text alone is no answer; write it as 'question' and 'answer', or as 'conversations'",
    },
    "turn": {
        **_EVERYWHERE,
        **dict.fromkeys(("image", "images", "video", "videos"), "name it in the record, or as a part of the content"),
    },
    "part": {**_EVERYWHERE, "fps": "only a video that is given as images has a pace of its own"},
}
"""Why keys that have a meaning elsewhere are read by nothing here."""


EMPTY_JSON = ("[]", "{}", "null")
"""Texts of JSON that say nothing: tables hold lists of tools so."""


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, white space, or a list or an object in which everything is so."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(is_empty(one) for one in value.values())
    return value is None or (isinstance(value, list | tuple) and all(is_empty(one) for one in value))


def find_unread_keys(given: Mapping[str, Any], read: Collection[str], level: Level = "record") -> list[str]:
    """The keys of a record, turn or part that hold something, that nothing reads and that are not harmless."""
    strange = [key for key in given if key not in read and key not in HARMLESS_KEYS[level]]
    return [
        key
        for key in strange
        if not is_empty(given[key]) and not (isinstance(given[key], str) and given[key].strip() in EMPTY_JSON)
    ]


def refuse_unread_keys(given: Mapping[str, Any], read: Collection[str], where: str, level: Level = "record") -> None:
    """Raise one `DataError` that names every key that nothing reads; `where` names the file and the record."""
    if strange := find_unread_keys(given, read, level):
        raise DataError(f"{where}: {describe_unread_keys(strange, read, level)}")


def describe_unread_keys(
    strange: Sequence[str], read: Collection[str], level: Level = "record", what: str = "key"
) -> str:
    """What is wrong with keys that nothing reads: each with the key that may be meant, or why not; and the cure."""
    named = ", ".join(f"{key!r:.{_LONGEST_KEY}}{_suggest_key(key, read, level)}" for key in strange[:_NAMED])
    more = f" and {len(strange) - _NAMED} others" if len(strange) > _NAMED else ""
    return (
        f"nothing reads the {what}{'' if len(strange) == 1 else 's'} {named}{more}. Rename or remove what is not read, or add it to "
        f"the source's `ignore` if it may be left out. Read are: {', '.join(sorted(read))}."
    )


_NAMED, _LONGEST_KEY = 20, 80
"""Keys that are named in an error, and characters of each: a broken record may have thousands, of any length."""


def _suggest_key(key: str, read: Collection[str], level: Level) -> str:
    if key in UNREAD_REASONS[level]:
        return f" ({UNREAD_REASONS[level][key]})"
    close = get_close_matches(key[:_LONGEST_KEY], sorted(read), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
