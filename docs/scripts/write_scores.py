"""Write docs/explanation/scores.md: which original scorer each of ours equals, on how many golden cases.

python docs/scripts/write_scores.py
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from mmblocks.eval.golden.replays import REPLAYS
from mmblocks.eval.selftest import GoldenCase, read_golden_cases

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/explanation/scores.md"
GOLDEN = ROOT / "tests/golden/eval"
PACKAGE = "mmblocks.eval."
HEAD = """\
# How far scores can be believed

A scorer of a benchmark here gives the number that the original scorer gives. "Golden cases" prove it: made-up answers and
references, and what the original code gave for them. `tests/eval/test_golden_scores.py` compares every case. Some cases of
each group ship with the package; `mmblocks.eval.selftest.run_golden_cases()` compares these on your machine.

The originals: [lmms-eval](https://github.com/EvolvingLMMs-Lab/lmms-eval), [LLaVA](https://github.com/haotian-liu/LLaVA),
[LLaVA-NeXT](https://github.com/LLaVA-VL/LLaVA-NeXT), [VQA](https://github.com/GT-Vision-Lab/VQA),
[MMMU](https://github.com/MMMU-Benchmark/MMMU), [VLMEvalKit](https://github.com/open-compass/VLMEvalKit),
[Ask-Anything](https://github.com/OpenGVLab/Ask-Anything), [LongWriter](https://github.com/THUDM/LongWriter).
Numbers are equal where the column "tolerance" is empty, else within it.

## The scorers

"drawn" counts the cases in which the original draws its answer at random. Ours gives no answer there.

"""
TAIL = """\

## Where ours differs on purpose

| scorer | the original | ours | reason |
| --- | --- | --- | --- |
| `metrics.mmmu`: all three readers | draws a choice at random where it can read none | no answer: 0, and counted in reports | a score must be the same in every run |
| `metrics.scienceqa`: both ensembles | draw a choice at random where an answer has no letter or one beyond the choices | no choice: wrong | the same |
| `metrics.anls.score_stvqa` | `ZeroDivisionError` for two empty texts (1 golden case) | 1 | equal texts are alike |
| `metrics.pope.summarise_official` | `ZeroDivisionError` where precision, recall or F1 has no case (3 golden cases) | 0 | one category without a "yes" must not stop a run |
| `metrics.longwriter.score_length` | `ZeroDivisionError` where nothing was written (5 golden cases) | 0 | nothing written is the worst length |
| `metrics.rouge.score_union` | `ValueError` for a text of periods only | 0 | such a text has no word |
| `metrics.longwriter.read_rating` | counts tries, asks again | no answer where one of the six ratings is missing | who asks again decides on the number of tries |
| `metrics.llava_bench.read_scores`, `read_scores_lmms` | a reply without two numbers gives [-1, -1], which enters the mean | no answer: left out, and counted | a judge's mistake is no score of the model |
| `metrics.llava_bench.read_scores` | accepts "nan" and "inf" | no answer | one of these makes the mean useless |
| `metrics.activitynet.read_verdict` | a reply that cannot be read stops the aggregate, or is "no" with 0 after an error | no answer: left out, and counted | the same as for LLaVA-Bench; a verdict of more than 2,000 characters is not read either |
| `metrics.mmvet.read_score` | asks again, at a higher temperature each time, then 0 | no answer: left out, and counted | the same |
| `metrics.mvbench.match_original` | `IndexError` where the reference is one word | compares the words | a reference may be one word |
| `statistics` of fewer than two scores | not-a-number | `None` | JSON has no such number |
| `metrics.interleave.score_datasets` | not-a-number for a data set whose references are all empty | the data set is left out | the same |
| `metrics.mmmu_open.extract_numbers` | reads the digits of a long number again from each digit on | finds the same numbers in linear time | 10,000 digits take the original 4 s, ours 2 ms |

Two rules for one benchmark are two functions, and a table says which one it follows:

- VQAv2: the official code normalises only where the references differ; lmms-eval always does. On 4 of the 55 cases the scores differ.
- POPE: the original looks for a "no" in the first sentence; lmms-eval wants the whole answer to be yes or no, and its
  `yes_ratio` is that of the labels.
- LLaVA-Interleave Bench: LLaVA-NeXT's script normalises before ROUGE-L and averages data sets; lmms-eval does not normalise and
  averages answers.
- MMBench: the readers of lmms-eval and of VLMEvalKit differ.

Rules that surprise are kept, because published figures follow them: SEED-Bench takes the first character, so "Answer: B" is A;
MVBench takes "a dog" for A; MME counts a category of an unknown name as cognition; the period rule of VQA's normaliser has a
misprint; at most 32 periods are removed.

## Beyond the golden cases

- Every reader and scorer of single answers was put to 20,000 random answers beside the original function (ROUGE-L to 2,000), and
  the aggregates of MME, MMBench, MM-Vet, LLaVA-Interleave Bench and the error bars to 400 random sets: no difference.
- CIDEr and ROUGE-L of captions (`metrics.captions`) are own code. The numbers are those of pycocoevalcap 1.2, which is 100 MB
  and starts Java for its tokenizer. Given words, they agree to 1e-12. The words agree with its tokenizer on 48 of 50 captions in
  `tests/eval/captions.json`; slang that the tokenizer knows word by word may be split otherwise.
- `rouge_l` for your own data is the F1 of Google's `rouge-score` 0.1.2 on ASCII text. In other scripts each letter counts, and a
  Chinese or Japanese character is a word.
- Student's t is computed here and agrees with scipy 1.17.1 to 1e-12.
- A judge's score depends on the judge. What is tested is how its reply is read and averaged.

Not scored: the open-ended half of NExT-QA. Its measure, WUPS, needs WordNet and a word-sense disambiguator, which download their
data when they are used. The full set of EgoSchema is scored by a public server; nothing here sends it anything.
"""


def page() -> str:
    """The page."""
    return HEAD + "\n".join(list_rows()) + "\n" + TAIL


def list_rows() -> Iterator[str]:
    groups: dict[tuple[str, str], list[GoldenCase]] = defaultdict(list)
    for case in read_golden_cases(GOLDEN):
        groups[case.file, case.group].append(case)
    yield "| golden file and group | original | ours | cases | drawn | tolerance |"
    yield "| --- | --- | --- | --: | --: | --: |"
    for (file, group), cases in groups.items():
        replay = REPLAYS[file][group]
        ours = ", ".join(f"`{name_function(function)}`" for function in replay.ours)
        is_drawn = any(name_function(function).startswith("metrics.mmmu.") for function in replay.ours)
        drawn = sum(case.want is None for case in cases) if is_drawn else 0
        tolerance = f"{replay.tolerance:g}" if replay.tolerance else ""
        source = cases[0].source.replace("|", "\\|")
        yield f"| {file}: {group} | {source} | {ours} | {len(cases)} | {drawn or ''} | {tolerance} |"
    yield f"| all | | | {sum(map(len, groups.values()))} | | |"


def name_function(function: Callable[..., object]) -> str:
    """As it is imported from `mmblocks.eval`."""
    module = inspect.getmodule(function)
    assert module is not None
    return f"{module.__name__.removeprefix(PACKAGE)}.{function.__name__}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
