"""What ours gives for a golden case that is a batch of rows, in the form of its file."""

from dataclasses import asdict
from statistics import fmean
from typing import Any

from mmblocks.eval import statistics
from mmblocks.eval.metrics import (
    ai2d,
    chartqa,
    interleave,
    mmbench,
    mme,
    mmmu,
    mmmu_open,
    mmvet,
    multiple_choice,
    mvbench,
    scienceqa,
    seed,
)
from mmblocks.eval.metrics.means import average_by, average_of_groups

Json = Any
"""A value as a golden file holds it."""


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
        "stderr_clustered": statistics.compute_clustered_error(given["scores"], given["clusters"]),
    }


def give_pooled(given: Json) -> Json:
    return {
        "pooled": statistics.compute_pooled_error(given["stderrs"], given["sizes"]),
        "weighted": statistics.compute_weighted_mean(given["metrics"], given["sizes"]),
        "unweighted": fmean(given["metrics"]),
    }


def give_paired(given: Json) -> Json:
    difference = statistics.compare_pairs(given["a"], given["b"])
    if difference is None:
        return None
    names = ("mean_diff", "se_diff", "ci_lower", "ci_upper", "t_stat", "p_value", "n")
    return dict(zip(names, asdict(difference).values(), strict=True))
