"""The shared letter extractor of lmms-eval and the benchmarks that use it: MMStar, Video-MME, RealWorldQA, MMBench."""

from collections.abc import Iterator

from mmblocks.eval.metrics.letters import MARKS, list_letters, strip_marks

PHRASES = (
    "the answer is|answer is|the correct answer is|correct answer is|the best answer is|best answer is|"
    "the correct option is|correct option is|the best option is|best option is|the choice is|choice is|"
    "the correct choice is|correct choice is|i choose|i select|i pick|my answer is|my choice is|"
    "옵션|정답은|답은|답:|答案是|答案为|选|答えは"
)
LETTERS = "ABCD"
"""Of the options of MMStar and Video-MME."""
FORMS = ("({})", "{}.", "{}:", "{})", "{} ", "{}")
"""Where the answer has no letter at its ends and after no phrase, in the order of trust. The last is any occurrence."""


def extract_letter(answer: str, letters: str = list_letters(8)) -> str | None:
    """As lmms-eval does: at the start, at the end, after a phrase, then by form; of several alike the last."""
    text = strip_marks(answer.strip(), MARKS + '"')
    core = text.strip()
    if not core:
        return None
    for letter in letters:
        if core.startswith(letter) and not core[1:2].isalpha():
            return letter
    for letter in letters:
        if core.endswith(letter) and not core[-2:-1].isalpha():
            return letter
    return _take_last(_find_after_phrases(f" {text} ", letters)) or _find_by_form(f" {text} ", letters)


def score_letter(answer: str, letter: str, letters: str = LETTERS) -> float | None:
    """Whether the extracted letter is the right one (MMStar, Video-MME)."""
    found = extract_letter(answer, letters)
    return None if found is None else float(found == letter.strip().upper())


def score_realworldqa(answer: str, reference: str) -> float | None:
    """As lmms-eval does: a letter where the reference is one, else the text in lower case without final periods."""
    reference = reference.strip()
    if len(reference) == 1 and reference.upper() in "ABCD":
        return score_letter(answer, reference)
    return float(answer.lower().strip().rstrip(".") == reference.lower())


def _find_by_form(padded: str, letters: str) -> str | None:
    for form in FORMS:
        places = [(padded.rfind(form.format(letter)), letter) for letter in letters]
        found = _take_last(iter((place, letter) for place, letter in places if place >= 0))
        if found:
            return found
    return None


def _find_after_phrases(padded: str, letters: str) -> Iterator[tuple[int, str]]:
    lowered = padded.lower()
    for phrase in PHRASES.split("|"):
        start = lowered.find(phrase)
        if start >= 0:
            places = ((padded.find(letter, start + len(phrase)), letter) for letter in letters)
            yield from ((place, letter) for place, letter in places if place >= 0)


def _take_last(found: Iterator[tuple[int, str]]) -> str | None:
    return max(found, key=lambda pair: pair[0], default=(0, None))[1]
