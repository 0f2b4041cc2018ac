"""The readers of multiple-choice answers that descend from MMMU's. Where those draw at random, these give None."""

from collections.abc import Callable, Sequence

from mmblocks.eval.metrics.letters import list_letters, match_texts, strip_marks

MOST_WORDS_OF_A_LETTER = 5
"""Option texts are looked for in longer answers only."""


def read_official(answer: str, options: Sequence[str]) -> str | None:
    """As MMMU does: "(B)", else " B ", else an option's text; the last one named."""
    return _read_last(answer, options, ["({})", " {} "])


def read_lmms(answer: str, options: Sequence[str]) -> str | None:
    """As lmms-eval does for MMMU and NExT-QA: "(B)", else "B " and so the end of a word, else "B.", else a text."""
    return _read_last(answer, options, ["({})", "{} ", "{}."])


def read_egoschema(answer: str, options: Sequence[str]) -> str | None:
    """As lmms-eval does for EgoSchema: of "(B)", "B " and "B." the one whose last place comes first, else a text."""
    padded = f" {strip_marks(answer)} "
    letters = list_letters(len(options))
    forms = {form.format(letter): letter for form in ("({})", "{} ", "{}.") for letter in letters}
    found = [form for form in forms if form in padded]
    if found:
        return forms[min(found, key=padded.rfind)]
    return _choose_by_text(padded, options, min)


def _read_last(answer: str, options: Sequence[str], forms: Sequence[str]) -> str | None:
    padded = f" {strip_marks(answer)} "
    for form in forms:
        found = [letter for letter in list_letters(len(options)) if form.format(letter) in padded]
        if found:
            place = form if form == "({})" else " {} "  # the originals look for this one only
            return max(found, key=lambda letter: padded.rfind(place.format(letter)))
    return _choose_by_text(padded, options, max)


def _choose_by_text(padded: str, options: Sequence[str], choose: Callable[..., str]) -> str | None:
    if len(padded.split()) <= MOST_WORDS_OF_A_LETTER:
        return None
    texts = dict(zip(list_letters(len(options)), options, strict=True))
    lowered = padded.lower()
    found = match_texts(padded, texts)
    return choose(found, key=lambda letter: lowered.rfind(texts[letter].lower())) if found else None
