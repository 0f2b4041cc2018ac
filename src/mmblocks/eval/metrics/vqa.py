"""Soft accuracy of VQA: an answer is right as far as three of the other annotators gave it."""

from collections.abc import Sequence

from mmblocks.eval.metrics.normalise import NUMBER_WITH_COMMAS, flatten_lines, normalise_m4c, normalise_vqa


def score_vqav2(answer: str, references: Sequence[str]) -> float:
    """As the official code of VQA does: normalised only where the references, usually ten, are not all equal."""
    answer, references = flatten_lines(answer), [flatten_lines(r) for r in references]
    if len(set(references)) > 1:
        answer, references = normalise_vqa(answer), [normalise_vqa(r) for r in references]
    return average_leaving_one_out(answer, references)


def score_vqav2_lmms(answer: str, references: Sequence[str]) -> float:
    """As lmms-eval does: always normalised."""
    wanted = [normalise_vqa(reference, NUMBER_WITH_COMMAS) for reference in references]
    return average_leaving_one_out(normalise_vqa(answer, NUMBER_WITH_COMMAS), wanted)


def score_textvqa(answer: str, references: Sequence[str]) -> float:
    """With the normaliser of M4C, as LLaVA and lmms-eval do; OK-VQA and VizWiz follow the same rule."""
    return average_leaving_one_out(normalise_m4c(answer), [normalise_m4c(reference) for reference in references])


def average_leaving_one_out(answer: str, references: Sequence[str]) -> float:
    """Mean of min(1, matches / 3) over the sets of references that lack one of them; 0 where there are none."""
    if not references:
        return 0.0
    matches = references.count(answer)
    without_a_match = matches * min(1.0, (matches - 1) / 3)
    without_another = (len(references) - matches) * min(1.0, matches / 3)
    return (without_a_match + without_another) / len(references)
