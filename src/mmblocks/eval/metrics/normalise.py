"""Normal forms of short answers: VQA's, that of M4C (TextVQA), and texts without case and punctuation."""

import re
from string import punctuation

NUMBERS = "zero one two three four five six seven eight nine ten"
NUMBER_WORDS = {word: str(number) for number, word in enumerate(NUMBERS.split())} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

NUMBER_WITH_COMMA = re.compile(r"\d,\d")
NUMBER_WITH_COMMAS = re.compile(r"(?<=\d),+(?=\d)")
"""The rule of M4C and lmms-eval, which takes "1,,2" too."""
LOOSE_PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32
"""The originals pass `re.UNICODE`, which is 32, where `re.sub` takes the largest number of replacements."""


WITH_APOSTROPHES = (
    "'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't "
    "hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't "
    "mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've "
    "somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've "
    "something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're "
    "you've"
)
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in WITH_APOSTROPHES.split()
    for place, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}  # turned round in the published table
"""Spellings without one of the apostrophes, and what they mean."""


def drop_punctuation(text: str, number: re.Pattern[str] = NUMBER_WITH_COMMA) -> str:
    """VQA's rule: a mark goes where it stands beside a blank or the text holds a number with a comma; else it is a blank.

    A period goes unless a digit follows: the published pattern means to look behind as well and does not.
    """
    has_number = number.search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        goes = has_number or mark + " " in text or " " + mark in text
        cleaned = cleaned.replace(mark, "" if goes else " ")
    return LOOSE_PERIOD.sub("", cleaned, count=MOST_PERIODS)


def normalise_words(text: str) -> str:
    """Lower case, number words as digits, no articles, apostrophes put back."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def flatten_lines(text: str) -> str:
    """Newlines and tabs as blanks, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise_vqa(text: str, number: re.Pattern[str] = NUMBER_WITH_COMMA) -> str:
    """The normal form of VQA (GT-Vision-Lab/VQA, vqaEval.py)."""
    return normalise_words(drop_punctuation(flatten_lines(text), number))


def normalise_m4c(text: str) -> str:
    """The normal form of M4C and TextVQA (LLaVA, m4c_evaluator.py): without commas and question marks, "'s" a word."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_vqa(text, NUMBER_WITH_COMMAS)


def drop_case_and_punctuation(text: str) -> str:
    """Lower case without ASCII punctuation; blanks stay."""
    return text.lower().translate(_NO_PUNCTUATION)


_NO_PUNCTUATION = str.maketrans("", "", punctuation)
