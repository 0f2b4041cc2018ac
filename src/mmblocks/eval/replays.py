"""How the golden cases of the original scorers are put to ours: a `Replay` for each group of cases of each file."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from mmblocks.eval import statistics
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

Json = Any
"""A value as a golden file holds it."""


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


def replay_pairs(score: Callable[[str, str], object], key: str = "answer", tolerance: float = 0.0) -> Replay:
    """Of a score of a prediction against one answer."""
    return Replay((score,), lambda given: score(given["pred"], given[key]), tolerance)


def replay_options(read: Callable[[str, list[str]], str | None], *, no_letter: Json = None) -> Replay:
    """Of a reader of letters."""
    return Replay((read,), lambda given: or_else(read(given["response"], given["options"]), no_letter))


def or_else(value: Json, missing: Json) -> Json:
    """What the original gives where ours gives None."""
    return missing if value is None else value


def give_chartqa(rows: Json) -> Json:
    scores = [(row["type"], float(chartqa.score_relaxed(row["pred"], row["answer"]))) for row in rows]
    means = average_by(scores)
    return {
        "relaxed_overall": fmean(score for _, score in scores),
        "relaxed_human_split": means["human_test"],
        "relaxed_augmented_split": means["augmented_test"],
    }


def give_ai2d(given: Json) -> Json:
    return {"filtered": ai2d.read_letter(given["pred"]), "score": ai2d.score_letter(given["pred"], given["answer"])}


def give_open_answers(response: str) -> Json:
    return sorted(mmmu_open.read_answers(response), key=lambda value: (isinstance(value, str), str(value)))


def give_mmmu(rows: Json) -> Json:
    judged = {row["id"]: score_mmmu_row(row) for row in rows}
    judge = {key: "Correct" if is_right else "Wrong" for key, is_right in judged.items()}
    return {"judge": judge, "acc": fmean(judged.values())}


def score_mmmu_row(row: Json) -> bool:
    if row["question_type"] == "multiple-choice":
        return mmmu.read_official(row["response"], row["options"]) == row["answer"]
    return mmmu_open.score_answers(mmmu_open.read_answers(row["response"]), row["answer"])


def give_extracted(given: Json) -> Json:
    return multiple_choice.extract_letter(given["response"], "".join(given["choices"])) or ""


def give_circular(rows: Json) -> Json:
    return mmbench.summarise_circular(
        mmbench.Rotation(
            row["index"],
            mmbench.read_letter(row["prediction"], [row[k] for k in "ABCD" if row[k] is not None]) == row["answer"],
            row["category"],
            row["L2-category"],
        )
        for row in rows
    )


def give_mme(rows: Json) -> Json:
    sums = mme.summarise(
        mme.ImageQuestion(row["category"], row["question_id"], mme.score_answer(row["pred"], row["answer"]) == 1)
        for row in rows
    )
    return {f"mme_{name}_score": score for name, score in sums.items()}


def give_scienceqa(rows: Json) -> Json:
    parsed = {row["id"]: scienceqa.read_llava(row["pred"]) if row["pred"] is not None else None for row in rows}
    index = {row["id"]: scienceqa.to_index(parsed[row["id"]], len(row["choices"])) for row in rows}
    right = [index[row["id"]] == row["answer"] for row in rows]
    has_image = [row["image"] and row["pred"] is not None for row in rows]
    percent = scienceqa.summarise_llava(list(zip(right, has_image, strict=True)))
    return {
        "total": len(rows),
        "correct": sum(right),
        "accuracy_percent": percent["accuracy"],
        "img_accuracy_percent_2dp": round(percent["img_accuracy"], 2),
        "index": {key: or_else(value, -1) for key, value in index.items()},
        "parsed": {key: value or "FAILED" for key, value in parsed.items()},
    }


def make_ensembles(rows: Json) -> list[scienceqa.Ensemble]:
    return [
        scienceqa.Ensemble(len(row["choices"]), row["answer"], row["pred"], row["gpt4"], row["judge"]) for row in rows
    ]


def give_complement(rows: Json) -> Json:
    sums = scienceqa.summarise_ensembles(make_ensembles(rows))
    return {name: sums[name] for name in ("total", "complement_correct", "upper_bound_correct", "gpt4_failed")}


def give_judged(rows: Json) -> Json:
    questions = make_ensembles(rows)
    sums = scienceqa.summarise_ensembles(questions)
    names = ("our_correct", "gpt4_failed", "complement_correct", "judge_correct")
    return {name: sums[name] for name in names} | {
        "accuracy_percent": sums["judge_correct"] / sums["total"] * 100,
        "index": {row["id"]: scienceqa.choose_judged(q) for row, q in zip(rows, questions, strict=True)},
    }


def make_interleave(rows: Json) -> list[interleave.InterleaveAnswer]:
    return [interleave.InterleaveAnswer(row["sub_task"], row["type"], row["pred"], row["gt"]) for row in rows]


def give_interleave(rows: Json) -> Json:
    scores = interleave.score_datasets(make_interleave(rows))
    kinds = {row["sub_task"]: row["type"] for row in reversed(rows)}
    names = {interleave.OPEN: "Rouge-L f", interleave.CHOICE: "Accuracy"}
    return {
        "eval_dataset": {name: {names[kinds[name]]: score} for name, score in scores.items()},
        "eval_cat": interleave.average_categories(scores),
    }


def give_seed(rows: Json) -> Json:
    scores = [(f"seed_{row['data_type']}", or_else(seed.score_letter(row["pred"], row["answer"]), 0.0)) for row in rows]
    return average_by([*scores, *(("seed_all", score) for _, score in scores)])


def give_mvbench(rows: Json) -> Json:
    scores = [mvbench.score_lmms(row["pred"], row["candidates"], row["answer"]) for row in rows]
    return {"scores": [or_else(score, 0) for score in scores], "accuracy": mvbench.summarise_lmms(scores)}


def give_mmstar(rows: Json) -> Json:
    scores = [or_else(multiple_choice.score_letter(row["pred"], row["answer"]), 0.0) for row in rows]
    pairs = zip((row["l2"] for row in rows), scores, strict=True)
    return {"scores": scores, "average": average_of_groups(pairs)}


def give_videomme(rows: Json) -> Json:
    scores = [or_else(multiple_choice.score_letter(row["pred"], row["answer"]), 0.0) for row in rows]
    letters = [multiple_choice.extract_letter(row["pred"], "ABCD") or "" for row in rows]
    return {"pred": letters, "score": 100 * fmean(scores)}


def give_egoschema(rows: Json) -> Json:
    letters = [mmmu.read_egoschema(row["pred"], row["options"]) for row in rows]
    index = [-1 if letter is None else "ABCDE".index(letter) for letter in letters]
    right = [str(i) == row["answer"] for i, row in zip(index, rows, strict=True)]
    return {"pred": index, "accuracy": fmean(right)}


def give_mmvet(rows: Json) -> Json:
    means = mmvet.summarise(tuple(row) for row in rows)
    by_name = means.capabilities | means.combinations  # the file was read from lines of which the later replaced
    return {
        "overall": means.overall,
        "by_capability_2dp_nonzero": {name: round(score, 2) for name, score in by_name.items() if round(score, 2)},
    }


def give_errors(given: Json) -> Json:
    return {
        "mean": fmean(given["scores"]),
        "stderr_sample": statistics.standard_error(given["scores"]),
        "stderr_clustered": statistics.clustered_standard_error(given["scores"], given["clusters"]),
    }


def give_pooled(given: Json) -> Json:
    return {
        "pooled": statistics.pooled_standard_error(given["stderrs"], given["sizes"]),
        "weighted": statistics.weighted_mean(given["metrics"], given["sizes"]),
        "unweighted": fmean(given["metrics"]),
    }


def give_paired(given: Json) -> Json:
    difference = statistics.compare_pairs(given["a"], given["b"])
    if difference is None:
        return None
    names = ("mean_diff", "se_diff", "ci_lower", "ci_upper", "t_stat", "p_value", "n")
    return dict(zip(names, asdict(difference).values(), strict=True))


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
        "splits": Replay((chartqa.score_relaxed, average_by), give_chartqa),
    },
    "gqa": {"exact_match": replay_pairs(gqa.score_exact)},
    "ai2d": {"ai2d": Replay((ai2d.read_letter, ai2d.score_letter), give_ai2d)},
    "mmmu": {
        "mc_official": replay_options(mmmu.read_official),
        "mc_lmms": replay_options(mmmu.read_lmms),
        "mc_egoschema": replay_options(mmmu.read_egoschema),
        "extract_numbers": Replay((mmmu_open.extract_numbers,), mmmu_open.extract_numbers),
        "normalize_str": Replay((mmmu_open.normalise_text,), mmmu_open.normalise_text),
        "parse_open": Replay((mmmu_open.read_answers,), give_open_answers),
        "eval_open": Replay(
            (mmmu_open.score_answers,),
            lambda given: mmmu_open.score_answers(mmmu_open.read_answers(given["response"]), given["gold"]),
        ),
        "evaluate": Replay((mmmu.read_official, mmmu_open.score_answers), give_mmmu),
    },
    "mcq_extract": {
        "extract": Replay((multiple_choice.extract_letter,), give_extracted),
        "realworldqa": Replay(
            (multiple_choice.score_realworldqa,),
            lambda given: or_else(multiple_choice.score_realworldqa(given["pred"], given["answer"]), 0.0),
        ),
    },
    "mmbench": {
        "can_infer_lmms": replay_options(mmbench.read_lmms, no_letter=False),
        "can_infer_vlmevalkit": replay_options(mmbench.read_vlmevalkit, no_letter=False),
        "circular_static": Replay((mmbench.read_letter, mmbench.summarise_circular), give_circular),
    },
    "pope": {
        "official_rule": Replay((pope.summarise_official,), pope.summarise_official, 1e-9, where_raises={"f1": 0.0}),
        "lmms": Replay((pope.summarise_lmms,), pope.summarise_lmms, 1e-9),
    },
    "mme": {
        "parse_pred_ans": Replay((mme.read_answer,), lambda given: or_else(mme.read_answer(given), "other")),
        "aggregate": Replay((mme.score_answer, mme.summarise), give_mme, 1e-9),
    },
    "scienceqa": {
        "llava_eval": Replay((scienceqa.read_llava, scienceqa.to_index, scienceqa.summarise_llava), give_scienceqa),
        "gpt4_complement": Replay((scienceqa.choose_complement, scienceqa.summarise_ensembles), give_complement),
        "gpt4_judge": Replay((scienceqa.choose_judged, scienceqa.summarise_ensembles), give_judged),
        "lmms": replay_pairs(scienceqa.score_lmms),
    },
    "interleave": {
        "rouge_l": replay_pairs(interleave.score_open, "gt", 1e-9),
        "rouge_l_lmms": replay_pairs(interleave.score_open_lmms, "gt", 1e-9),
        "multi_choice": replay_pairs(interleave.score_choice, "gt"),
        "multi_choice_image": replay_pairs(interleave.score_choice, "gt"),
        "mcq_acc_lmms": replay_pairs(interleave.score_choice_lmms, "gt"),
        "overall_lmms": Replay(
            (interleave.summarise_lmms,), lambda rows: interleave.summarise_lmms(make_interleave(rows)), 1e-9
        ),
        "categories_original": Replay(
            (interleave.score_datasets, interleave.average_categories), give_interleave, 1e-9
        ),
    },
    "video_and_choice": {
        "seed": Replay((seed.score_letter,), give_seed, 1e-9),
        "mvbench_lmms": Replay((mvbench.score_lmms, mvbench.summarise_lmms), give_mvbench, 1e-9),
        "mvbench_original_check": replay_pairs(mvbench.match_original, "gt"),
        "perceptiontest": Replay(
            (perceptiontest.read_index,), lambda given: or_else(perceptiontest.read_index(given["pred"]), -1)
        ),
        "mmstar": Replay((multiple_choice.score_letter, average_of_groups), give_mmstar, 1e-9),
        "videomme": Replay((multiple_choice.extract_letter, multiple_choice.score_letter), give_videomme, 1e-9),
        "egoschema_subset": Replay((mmmu.read_egoschema,), give_egoschema, 1e-9),
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
        "mmvet_aggregate": Replay((mmvet.summarise,), give_mmvet, 1e-9),
    },
    "longwriter": {
        "length_score": Replay(
            (longwriter.score_length,), lambda given: longwriter.score_length(*given), 1e-9, where_raises=0.0
        ),
        "count_words": Replay((longwriter.count_words,), longwriter.count_words),
        "quality": Replay((longwriter.summarise_quality,), longwriter.summarise_quality, 1e-9),
    },
    "statistics": {
        "stderr": Replay((statistics.standard_error, statistics.clustered_standard_error), give_errors, 1e-9),
        "pooled": Replay((statistics.pooled_standard_error, statistics.weighted_mean), give_pooled, 1e-9),
        "paired": Replay((statistics.compare_pairs,), give_paired, 1e-9),
    },
}
"""By file of golden cases and group."""
