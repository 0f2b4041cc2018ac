"""How the golden cases of the original scorers are put to ours: a `Replay` for each group of cases of each file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mmblocks.eval import statistics
from mmblocks.eval.golden import batches
from mmblocks.eval.golden.batches import Json, or_else
from mmblocks.eval.metrics import (
    activitynet,
    ai2d,
    anls,
    chartqa,
    gqa,
    interleave,
    llava_bench,
    longwriter,
    mmbench,
    mme,
    mmmu,
    mmmu_open,
    mmvet,
    multiple_choice,
    mvbench,
    normalise,
    perceptiontest,
    pope,
    scienceqa,
    seed,
    vqa,
)
from mmblocks.eval.metrics.means import average_by, average_of_groups


@dataclass(frozen=True, slots=True)
class Replay:
    """ours: the functions that the cases hold. give: their result for a case's input, in the form of the file.

    where_raises: what ours gives in part where the original raises; None where the group has no such case.
    """

    ours: tuple[Callable[..., object], ...]
    give: Callable[[Json], Json]
    tolerance: float = 0.0
    where_raises: Json = None


def replay_references(score: Callable[..., object], tolerance: float, where_raises: Json = None) -> Replay:
    """Of a score of a prediction against several answers."""
    return Replay((score,), lambda given: score(given["pred"], given["answers"]), tolerance, where_raises)


def replay_pairs(score: Callable[..., object], key: str = "answer", tolerance: float = 0.0) -> Replay:
    """Of a score of a prediction against one answer."""
    return Replay((score,), lambda given: score(given["pred"], given[key]), tolerance)


def replay_options(read: Callable[[str, list[str]], str | None], *, no_letter: Json = None) -> Replay:
    """Of a reader of letters."""
    return Replay((read,), lambda given: or_else(read(given["response"], given["options"]), no_letter))


REPLAYS: Mapping[str, Mapping[str, Replay]] = {
    "vqa_normalizer": {
        "m4c": Replay((normalise.normalise_m4c,), normalise.normalise_m4c),
        "official": Replay((normalise.normalise_vqa,), normalise.normalise_vqa),
    },
    "vqa_soft": {
        "vqav2_official": replay_references(vqa.score_vqav2, 1e-6),
        "vqav2_lmms": replay_references(vqa.score_vqav2_lmms, 1e-6),
        "textvqa_m4c": replay_references(vqa.score_textvqa, 1e-6),
        "textvqa_lmms": replay_references(vqa.score_textvqa, 1e-6),
    },
    "anls": {
        "lmms": replay_references(anls.score_lmms, 1e-9),
        "stvqa": replay_references(anls.score_stvqa, 1e-9, where_raises=1.0),
    },
    "chartqa": {
        "relaxed_correctness": replay_pairs(chartqa.score_relaxed),
        "splits": Replay((chartqa.score_relaxed, average_by), batches.give_chartqa),
    },
    "gqa": {"exact_match": replay_pairs(gqa.score_exact)},
    "ai2d": {"ai2d": Replay((ai2d.read_letter, ai2d.score_letter), batches.give_ai2d)},
    "mmmu": {
        "mc_official": replay_options(mmmu.read_official),
        "mc_lmms": replay_options(mmmu.read_lmms),
        "mc_egoschema": replay_options(mmmu.read_egoschema),
        "extract_numbers": Replay((mmmu_open.extract_numbers,), mmmu_open.extract_numbers),
        "normalize_str": Replay((mmmu_open.normalise_text,), mmmu_open.normalise_text),
        "parse_open": Replay((mmmu_open.read_answers,), batches.give_open_answers),
        "eval_open": Replay(
            (mmmu_open.score_answers,),
            lambda given: mmmu_open.score_answers(mmmu_open.read_answers(given["response"]), given["gold"]),
        ),
        "evaluate": Replay((mmmu.read_official, mmmu_open.score_answers), batches.give_mmmu),
    },
    "mcq_extract": {
        "extract": Replay((multiple_choice.extract_letter,), batches.give_extracted),
        "realworldqa": Replay(
            (multiple_choice.score_realworldqa,),
            lambda given: or_else(multiple_choice.score_realworldqa(given["pred"], given["answer"]), 0.0),
        ),
    },
    "mmbench": {
        "can_infer_lmms": replay_options(mmbench.read_lmms, no_letter=False),
        "can_infer_vlmevalkit": replay_options(mmbench.read_vlmevalkit, no_letter=False),
        "circular_static": Replay((mmbench.read_letter, mmbench.summarise_circular), batches.give_circular),
    },
    "pope": {
        "official_rule": Replay((pope.summarise_official,), pope.summarise_official, 1e-9, where_raises={"f1": 0.0}),
        "lmms": Replay((pope.summarise_lmms,), pope.summarise_lmms, 1e-9),
    },
    "mme": {
        "parse_pred_ans": Replay((mme.read_answer,), lambda given: or_else(mme.read_answer(given), "other")),
        "aggregate": Replay((mme.score_answer, mme.summarise), batches.give_mme, 1e-9),
    },
    "scienceqa": {
        "llava_eval": Replay(
            (scienceqa.read_llava, scienceqa.to_index, scienceqa.summarise_llava), batches.give_scienceqa
        ),
        "gpt4_complement": Replay(
            (scienceqa.choose_complement, scienceqa.summarise_ensembles), batches.give_complement
        ),
        "gpt4_judge": Replay((scienceqa.choose_judged, scienceqa.summarise_ensembles), batches.give_judged),
        "lmms": replay_pairs(scienceqa.score_lmms),
    },
    "interleave": {
        "rouge_l": replay_pairs(interleave.score_open, "gt", 1e-9),
        "rouge_l_lmms": replay_pairs(interleave.score_open_lmms, "gt", 1e-9),
        "multi_choice": replay_pairs(interleave.score_choice, "gt"),
        "multi_choice_image": replay_pairs(interleave.score_choice, "gt"),
        "mcq_acc_lmms": replay_pairs(interleave.score_choice_lmms, "gt"),
        "overall_lmms": Replay(
            (interleave.summarise_lmms,), lambda rows: interleave.summarise_lmms(batches.make_interleave(rows)), 1e-9
        ),
        "categories_original": Replay(
            (interleave.score_datasets, interleave.average_categories), batches.give_interleave, 1e-9
        ),
    },
    "video_and_choice": {
        "seed": Replay((seed.score_letter,), batches.give_seed, 1e-9),
        "mvbench_lmms": Replay((mvbench.score_lmms, mvbench.summarise_lmms), batches.give_mvbench, 1e-9),
        "mvbench_original_check": replay_pairs(mvbench.match_original, "gt"),
        "perceptiontest": Replay(
            (perceptiontest.read_index,), lambda given: or_else(perceptiontest.read_index(given["pred"]), -1)
        ),
        "mmstar": Replay((multiple_choice.score_letter, average_of_groups), batches.give_mmstar, 1e-9),
        "videomme": Replay((multiple_choice.extract_letter, multiple_choice.score_letter), batches.give_videomme, 1e-9),
        "egoschema_subset": Replay((mmmu.read_egoschema,), batches.give_egoschema, 1e-9),
    },
    "judges": {
        "llava_bench_parse": Replay(
            (llava_bench.read_scores,), lambda reply: or_else(llava_bench.read_scores(reply), llava_bench.FAILED)
        ),
        "llava_bench_parse_lmms": Replay(
            (llava_bench.read_scores_lmms,),
            lambda reply: or_else(llava_bench.read_scores_lmms(reply), llava_bench.FAILED),
        ),
        "llava_bench_relative": Replay((llava_bench.compute_relative_score,), llava_bench.compute_relative_score, 1e-9),
        "llava_bench_summary": Replay((llava_bench.summarise,), llava_bench.summarise, 1e-9),
        "activitynet_parse": Replay((activitynet.read_verdict,), activitynet.read_verdict),
        "activitynet_aggregate": Replay((activitynet.summarise,), activitynet.summarise, 1e-9),
        "mmvet_aggregate": Replay((mmvet.summarise,), batches.give_mmvet, 1e-9),
    },
    "longwriter": {
        "length_score": Replay(
            (longwriter.score_length,), lambda given: longwriter.score_length(*given), 1e-9, where_raises=0.0
        ),
        "count_words": Replay((longwriter.count_words,), longwriter.count_words),
        "quality": Replay((longwriter.summarise_quality,), longwriter.summarise_quality, 1e-9),
    },
    "statistics": {
        "stderr": Replay((statistics.standard_error, statistics.compute_clustered_error), batches.give_errors, 1e-9),
        "pooled": Replay(
            (statistics.compute_pooled_error, statistics.compute_weighted_mean), batches.give_pooled, 1e-9
        ),
        "paired": Replay((statistics.compare_pairs,), batches.give_paired, 1e-9),
    },
}
"""By file of golden cases and group."""
