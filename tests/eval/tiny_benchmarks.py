"""Made-up documents of every task in a format in which it is published, answers to them, and their scores by hand."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image

R, W, N = 1.0, 0.0, None
"""Right, wrong, no answer that could be read."""


@dataclass(frozen=True)
class TinyBenchmark:
    """write: puts the files into a folder and gives the task's settings. scores: of each answer, by the first metric.

    summary: numbers of the summary. replies: of a judge, one for each answer, before the summary.
    """

    write: Callable[[Path], dict[str, Any]]
    answers: tuple[str, ...]
    scores: tuple[float | None, ...]
    summary: dict[str, float]
    replies: tuple[str, ...] = ()
    metric: str = "accuracy"
    settings: dict[str, Any] = field(default_factory=dict)


# Files ----------------------------------------------------------------------------------------------------------------


def make_png(colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return file.getvalue()


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def write_table(path, rows):
    """A .tsv as VLMEvalKit writes it, or a .csv."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_parquet(path, rows, images=("image",)):
    """A table of the hub: every row has its images as bytes."""
    stored = {name: {"bytes": make_png(), "path": None} for name in images}
    Dataset.from_list([{**row, **stored} for row in rows]).to_parquet(path)
    return str(path)


def write_image(folder, name="red.png"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_png())
    return name


def write_clips(folder, *names):
    for name in names:
        (folder / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "clips" / name).write_bytes(b"a clip that is opened when a model is asked")
    return str(folder / "clips")


def in_parquet(rows, **more):
    return lambda folder: {"data": write_parquet(folder / "test.parquet", rows, **more)}


# Documents ------------------------------------------------------------------------------------------------------------

PEOPLE = ["red", "red", "Red", "blue", "red", "red", "blue", "red", "red", "red"]
VQA_ROWS = [
    {"question_id": i, "question": "Which colour?", "answers": [{"answer": one} for one in PEOPLE], "image_id": i}
    for i in range(3)
]
VQA_ANSWERS, VQA_SCORES = ("red", "blue", ""), (1.0, 0.6, 0.0)  # two people of ten: 8 sets with 2 and 2 with 1 of 3
LETTERS = [{"A": "cat", "B": "dog", "C": "cow", "D": "hen", "answer": one} for one in "ABCD"]
OPTIONS = ["cat", "dog", "cow", "hen", "fox"]


def write_vqav2(folder):
    questions = [{"question_id": i, "image": write_image(folder), "text": "Which colour?"} for i in range(3)]
    annotations = [{"question_id": i, "answers": [{"answer": one} for one in PEOPLE]} for i in range(3)]
    return {
        "data": write_lines(folder / "questions.jsonl", questions),
        "annotations": write_json(folder / "annotations.json", {"info": {}, "annotations": annotations}),
    }


def write_textvqa(folder):
    write_image(folder, "images/0a1b.jpg")
    rows = [{"question_id": i, "image_id": "0a1b", "question": "WHICH colour?", "answers": PEOPLE} for i in range(3)]
    return {"data": write_json(folder / "val.json", {"data": rows}), "images": str(folder / "images")}


def write_gqa(folder):
    questions = [{"id": f"q{i}", "imageId": "77", "question": "Which colour?", "answer": "red"} for i in range(3)]
    Dataset.from_list(questions).to_parquet(folder / "questions.parquet")
    write_parquet(folder / "images.parquet", [{"id": "77"}])
    return {"data": str(folder / "questions.parquet"), "images": str(folder / "images.parquet")}


def write_gqa_json(folder):
    write_image(folder, "images/77.jpg")
    questions = {f"q{i}": {"imageId": "77", "question": "Which colour?", "answer": "red"} for i in range(2)}
    return {"data": write_json(folder / "testdev_balanced_questions.json", questions), "images": str(folder / "images")}


def write_chartqa(folder):
    rows = [
        {"imgname": write_image(folder), "query": "How many?", "label": "100", "split": s}
        for s in ("human", "augmented")
    ]
    return {"data": write_json(folder / "test.json", [*rows, {**rows[0], "label": "Oslo"}])}


def write_scienceqa(folder):
    problem = {"question": "Which?", "choices": ["a", "b", "c"], "answer": 1, "hint": "", "image": None, "subject": "x"}
    problems = {str(i): {**problem, "image": "image.png" if i == 1 else None} for i in (1, 2, 3)}
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"test": ["1", "2", "3"], "val": []})
    write_image(folder, "images/test/1/image.png")
    return {"data": str(folder)}


def write_scienceqa_ensemble(folder):
    outputs = {"1": "The answer is B.", "2": "I cannot see it.", "3": "The answer is A."}
    judged = [{"question_id": "3", "text": "The answer is B."}]
    return {
        **write_scienceqa(folder),
        "rule": "llava",
        "gpt4": write_json(folder / "gpt4.json", {"outputs": outputs}),
        "gpt4_judge": write_lines(folder / "judge.jsonl", judged),
    }


def write_mmbench(folder):
    rows = []
    for turn in range(2):  # two questions, the first of them with a rotation
        image = base64.b64encode(make_png()).decode() if turn == 0 else "1"
        texts = dict(zip("ABCD", ["cat", "dog", "cow", ""] if turn == 0 else ["dog", "cow", "cat", ""], strict=True))
        rows.append({"index": 1 + turn * 1000000, "image": image, **texts, "answer": "AC"[turn]})
    rows.append({**rows[0], "index": 2})
    shared = {"question": "Which?", "hint": "", "category": "animals", "l2-category": "perception"}
    return {"data": write_table(folder / "MMBench_DEV_EN.tsv", [{**shared, **row} for row in rows])}


def write_mmmu(folder):
    shared = {"options": "['cat', 'dog']", "question_type": "multiple-choice", "answer": "B"}
    rows = [{"id": f"validation_Art_{i}", "question": "<image 1> Which?", **shared} for i in range(2)]
    gold = {"options": "[]", "question_type": "open", "answer": "['12', 'twelve']"}
    rows.append({"id": "validation_Math_1", "question": "<image 2> and <image 1>: how many?", **gold})
    return {"data": write_parquet(folder / "val.parquet", rows, images=("image_1", "image_2"))}


def write_mme(folder):
    rows = [
        {
            "question_id": f"{kind}/1.png",
            "question": f"Is it {what}? Please answer yes or no.",
            "answer": a,
            "category": kind,
        }
        for kind in ("color", "code_reasoning")
        for what, a in (("red", "Yes"), ("blue", "No"))
    ]
    alone = {"question_id": "color/2.png", "question": "Is it red?", "answer": "Yes", "category": "color"}
    return {"data": write_parquet(folder / "mme.parquet", [*rows, alone])}


def write_pope(folder):
    rows = [
        {"question_id": i, "image": write_image(folder), "text": "Is there a cat?", "label": label}
        for i, label in enumerate(["yes", "yes", "no", "no"])
    ]
    return {"data": write_lines(folder / "coco_pope_random.json", rows)}


def write_seed(folder):
    choices = {f"choice_{one}": text for one, text in zip("abcd", OPTIONS, strict=False)}
    rows = [
        {"question_id": i, "question": "Which?", **choices, "answer": "B", "data_type": kind, "data_id": str(i)}
        for i, kind in enumerate(["image", "image", "video"])
    ]
    stored = [{"bytes": make_png(), "path": None}]
    images = [{**row, "image": stored * (1 + 3 * (row["data_type"] == "video"))} for row in rows]
    Dataset.from_list(images).to_parquet(folder / "seed.parquet")
    return {"data": str(folder / "seed.parquet")}


def write_nlvr2(folder):
    for number in (0, 1):
        write_image(folder, f"images/dev-1-0-img{number}.png")
    rows = [
        {"identifier": f"dev-1-0-{i}", "sentence": "Both are red.", "label": label}
        for i, label in enumerate(["True", "False"])
    ]
    return {
        "data": write_lines(folder / "dev.json", [*rows, {**rows[0], "identifier": "dev-1-0-2"}]),
        "images": str(folder / "images"),
    }


def write_interleave(folder):
    """The published .json: metadata names the data set, conversations hold the markers."""
    image = write_image(folder)
    rows = []
    for number, (dataset, kind, gold) in enumerate(
        [
            ("Spot-the-Diff", "open-ended", "the cat moved"),
            ("Birds-to-Words", "open-ended", "a b"),
            ("Spot-the-Diff", "open-ended", "the dog moved"),
            ("NLVR2_Mantis", "multi-choice", "A"),
        ]
    ):
        turns = [{"from": "human", "value": "<image><image>\nWhat?"}, {"from": "gpt", "value": gold}]
        metadata = {"dataset": dataset, "question_type": kind}
        rows.append({"sample_id": number, "conversations": turns, "image": [image, image], "metadata": metadata})
    return {"data": write_json(folder / "in_domain.json", rows)}


def write_multi_view(folder):
    turns = json.dumps([{"value": "<image>\nWhere?"}, {"value": "Here."}, {"value": "<image>\nAnd now?"}])
    rows = [
        {
            "sample_id": i,
            "conversations": turns,
            "answer": "left of it",
            "question_type": "open-ended",
            "sub_task": "ScanQA",
        }
        for i in range(2)
    ]
    return {"data": write_parquet(folder / "multi_view.parquet", rows, images=("image_0", "image_1"))}


def write_nextqa(folder):
    options = {f"a{i}": f" {text} " for i, text in enumerate(OPTIONS)}
    rows = [
        {"video": "4010", "qid": i, "question": "why?", "answer": 1, "type": kind, **options}
        for i, kind in enumerate(["CW", "TN", "DC"])
    ]
    return {"data": write_table(folder / "val.csv", rows), "videos": write_clips(folder, "1164/4010.mp4")}


def write_mvbench(folder):
    row = {"video": "a.mp4", "question": "Which?", "candidates": ["cat", "dog"], "answer": "dog"}
    for task, count in (("action_antonym", 2), ("state_change", 1)):
        write_json(folder / "json" / f"{task}.json", [row] * count)
    return {"data": str(folder / "json"), "videos": write_clips(folder, "ssv2/a.mp4")}


def with_clip(rows, clip):
    def write(folder):
        Dataset.from_list(rows).to_parquet(folder / "test.parquet")
        return {"data": str(folder / "test.parquet"), "videos": write_clips(folder, clip)}

    return write


def write_activitynetqa(folder):
    questions = [{"video_name": "1QIUV7WYKXg", "question": "is it Red", "question_id": f"q_{i}"} for i in range(4)]
    answers = [{"answer": "yes", "type": i % 2, "question_id": f"q_{i}"} for i in range(4)]
    return {
        "data": write_json(folder / "test_q.json", questions),
        "annotations": write_json(folder / "test_a.json", answers),
        "videos": write_clips(folder, "v_1QIUV7WYKXg.mkv"),
    }


def write_captions(folder):
    rows = [
        {"question_id": "a.jpg", "answer": ["a cat on a mat", "the cat sits"]},
        {"question_id": "b.jpg", "answer": ["two dogs run", "dogs in a park"]},
    ]
    return {"data": write_parquet(folder / "val.parquet", rows)}


def write_longbench(folder):
    rows = [{"prompt": "Write.", "type": "Report", "length": length} for length in (4, 1000)]
    return {"data": write_lines(folder / "longbench_write.jsonl", rows)}


def write_llava_bench(folder):
    image = write_image(folder)
    questions = [
        {"question_id": i, "image": image, "text": "What?", "category": kind}
        for i, kind in enumerate(["conv", "conv", "detail"])
    ]
    answers = [{"question_id": i, "text": "A red field.", "metadata": {}} for i in range(3)]
    return {
        "data": write_lines(folder / "questions.jsonl", questions),
        "annotations": write_lines(folder / "answers_gpt4.jsonl", answers),
        "context": write_lines(folder / "context.jsonl", [{"id": "0", "image": image, "caption": "All is red."}]),
    }


def write_mmvet(folder):
    row = {"imagename": write_image(folder, "v1_0.png"), "question": "What?", "answer": "a<AND>b"}
    content = {f"v1_{i}": {**row, "capability": names} for i, names in enumerate([["rec", "ocr"], ["math"], ["rec"]])}
    return {"data": write_json(folder / "mm-vet.json", content), "images": str(folder)}


def rate(*values):
    names = ("Relevance", "Accuracy", "Coherence", "Clarity", "Breadth and Depth", "Reading Experience")
    return json.dumps(dict(zip(names, values, strict=True)))


def ask(count, **fields):
    """Questions of one kind with an id each."""
    return [{"question_id": i, "question": "Which?", **fields} for i in range(count)]


# Benchmarks -----------------------------------------------------------------------------------------------------------

LETTER_ANSWERS, LETTER_SCORES = ("B", "A", "none"), (R, W, N)
THIRD = 100 / 3
VQA = {"accuracy": 100 * 1.6 / 3, "no_answer": 0}
POPE_ANSWERS = ("Yes.", "no", "No, there is not.", "yes")
DURATIONS = ("short", "short", "long")
MVBENCH = {"accuracy": 50.0, "accuracy/sub_task/action_antonym": 100.0, "accuracy/sub_task/state_change": 0.0}
SCIENCEQA = {"accuracy": THIRD, "img_accuracy": 100.0, "no_answer": 0}
CIDER = 250 * (3 / 4 + math.exp(-1 / 18) / 12)
"""Of two captions the second is 0. The first is one reference (three sizes of n-gram of four), and has one of three words
of the other, which is two pairs longer; the mean of both, times 10, halved over the captions, times 100."""
OPEN_ANSWERS = ("The cat moved.", "c d", "the dog", "B")

TINY = {
    "vqav2": TinyBenchmark(write_vqav2, VQA_ANSWERS, VQA_SCORES, VQA),
    "vqav2_lmms": TinyBenchmark(in_parquet(VQA_ROWS), ("Red.", "blue", ""), VQA_SCORES, VQA),
    "textvqa": TinyBenchmark(write_textvqa, VQA_ANSWERS, VQA_SCORES, VQA),
    "okvqa": TinyBenchmark(in_parquet(VQA_ROWS), VQA_ANSWERS, VQA_SCORES, VQA),
    "vizwiz": TinyBenchmark(
        in_parquet(
            [{**row, "answer_type": kind} for row, kind in zip(VQA_ROWS, ("other", "other", "yes/no"), strict=True)]
        ),
        VQA_ANSWERS,
        VQA_SCORES,
        {**VQA, "accuracy/answer_type/other": 80.0, "accuracy/answer_type/yes/no": 0.0},
    ),
    "gqa": TinyBenchmark(write_gqa, ("Red.", "blue", ""), (R, W, W), {"accuracy": THIRD}),
    "docvqa": TinyBenchmark(
        in_parquet([{"questionId": str(i), "question": "Which?", "answers": ["abcd", "abcdefgh"]} for i in range(3)]),
        ("ABCD", "abcx", ""),
        (1.0, 0.75, 0.0),
        {"anls": 175 / 3},
        metric="anls",
    ),
    "infovqa": TinyBenchmark(
        in_parquet([{"questionId": str(i), "question": "Which?", "answers": ["abcd"]} for i in range(3)]),
        ("abcd", "xycd", "x"),
        (1.0, 0.5, 0.0),
        {"anls": 50.0},
        metric="anls",
    ),
    "chartqa": TinyBenchmark(
        write_chartqa,
        ("105", "105.1", "oslo"),
        (R, W, R),
        {"relaxed": 200 / 3, "relaxed/type/human": 100.0, "relaxed/type/augmented": 0.0},
        metric="relaxed",
    ),
    "ai2d": TinyBenchmark(
        in_parquet(ask(3, options=OPTIONS[:4], answer="1")), ("B. dog", "A", "none"), (R, W, W), {"accuracy": THIRD}
    ),
    "scienceqa": TinyBenchmark(write_scienceqa, ("B", "A", "who knows"), (R, W, W), SCIENCEQA),
    "scienceqa_img": TinyBenchmark(write_scienceqa, ("B.",), (R,), {"accuracy": 100.0, "img_accuracy": 100.0}),
    "mmmu": TinyBenchmark(
        write_mmmu,
        ("(B)", "neither", "it is 12"),
        (R, N, R),
        {"accuracy": 200 / 3, "accuracy/subject/Art": 50.0, "accuracy/subject/Math": 100.0, "no_answer": 1},
    ),
    "mmbench": TinyBenchmark(
        write_mmbench,
        ("A", "none of them", "It is a cat"),  # the rotation of the first is wrong, so the first is
        (R, N, R),
        {"circular": 50.0, "circular/category/animals": 50.0, "circular/l2_category/perception": 50.0, "no_answer": 1},
    ),
    "mme": TinyBenchmark(
        write_mme,
        ("Yes", "No", "yes", "maybe", "Yes"),
        (R, R, R, N, R),
        {
            **{"perception": 200.0, "cognition": 50.0, "total": 250.0, "incomplete_images": 1, "no_answer": 1},
            **{"points/category/color": 200.0, "points/category/code_reasoning": 50.0},
        },
    ),
    "pope": TinyBenchmark(
        write_pope,
        POPE_ANSWERS,
        (R, W, R, W),
        {"f1": 50.0, "accuracy": 50.0, "precision": 50.0, "recall": 50.0, "yes_ratio": 50.0, "predicted_yes": 50.0},
    ),
    "pope_lmms": TinyBenchmark(
        write_pope,  # "Yes." and a sentence are neither yes nor no
        POPE_ANSWERS,
        (N, W, N, W),
        {
            "f1": 0.0,
            "accuracy": 0.0,
            "precision": 0.0,
            "recall": 0.0,
            "yes_ratio": 50.0,
            "predicted_yes": 25.0,
            "no_answer": 2,
        },
    ),
    "seed": TinyBenchmark(
        write_seed,
        ("B", "Answer: B", ""),
        (R, W, N),
        {"accuracy": THIRD, "accuracy/data_type/image": 50.0, "accuracy/data_type/video": 0.0, "no_answer": 1},
    ),
    "mmstar": TinyBenchmark(
        in_parquet(
            [
                {
                    "index": i,
                    "question": "Which? Options: A: cat, B: dog",
                    "answer": "B",
                    "l2_category": two,
                    "category": "c",
                }
                for i, two in enumerate("xxy")
            ]
        ),
        ("B", "The answer is A.", "B."),
        (R, W, R),
        {"average": 75.0, "accuracy": 200 / 3, "accuracy/l2_category/x": 50.0, "accuracy/category/c": 200 / 3},
    ),
    "realworldqa": TinyBenchmark(
        in_parquet([{"question": "Which?", "answer": one} for one in ("B", "B", "Two")]),
        ("B.", "...", "two."),
        (R, N, R),
        {"accuracy": 200 / 3, "no_answer": 1},
    ),
    "mathvista": TinyBenchmark(
        in_parquet(
            [
                {"pid": "1", "question": "?", "answer": "1.20", "choices": None, "question_type": "free_form"},
                {
                    "pid": "2",
                    "question": "?",
                    "answer": "dog",
                    "choices": ["cat", "dog"],
                    "question_type": "multi_choice",
                },
                {
                    "pid": "3",
                    "question": "?",
                    "answer": "dog",
                    "choices": ["cat", "dog"],
                    "question_type": "multi_choice",
                },
            ],
            images=("decoded_image",),
        ),
        ("1.2", "(B)", "???"),
        (R, R, N),
        {"accuracy": 200 / 3, "accuracy/question_type/multi_choice": 50.0, "no_answer": 1},
    ),
    "nlvr2": TinyBenchmark(write_nlvr2, ("True.", "true", ""), (R, W, N), {"accuracy": THIRD, "no_answer": 1}),
    "interleave": TinyBenchmark(
        write_interleave,  # "the dog" of "the dog moved": precision 1, recall 2/3
        OPEN_ANSWERS,
        (1.0, 0.0, 0.8, 0.0),
        {
            "average": 22.5,  # the mean of (90 + 0) / 2, data sets, and 0
            "average/category/spot_the_diff": 45.0,
            "average/category/nlrv2": 0.0,
            "average/sub_task/Spot-the-Diff": 90.0,
        },
        metric="score",
    ),
    "interleave_lmms": TinyBenchmark(
        write_interleave,  # case counts here
        OPEN_ANSWERS,
        (2 / 3, 0.0, 0.8, 0.0),
        {"average": 50 * (2 / 3 + 0.8) / 3, "average/category/spot_the_diff": 100 * (2 / 3 + 0.8) / 3},
        metric="score",
    ),
    "nextqa_mc": TinyBenchmark(
        write_nextqa,
        LETTER_ANSWERS,
        LETTER_SCORES,
        {
            "accuracy": THIRD,
            "accuracy/kind/causal": 100.0,
            "accuracy/kind/temporal": 0.0,
            "accuracy/type/DC": 0.0,
            "no_answer": 1,
        },
    ),
    "mvbench": TinyBenchmark(write_mvbench, ("(B) dog", "", "a cat"), (R, N, W), {**MVBENCH, "no_answer": 1}),
    "perceptiontest": TinyBenchmark(
        with_clip(
            [
                {"video_name": "video_9", "question_id": i, "question": "?", "options": OPTIONS[:3], "answer_id": 1}
                for i in range(3)
            ],
            "video_9.mp4",
        ),
        LETTER_ANSWERS,
        LETTER_SCORES,
        {"accuracy": THIRD, "no_answer": 1},
    ),
    "egoschema_subset": TinyBenchmark(
        with_clip(
            [
                {"question_idx": str(i), "video_idx": "0a-1b", "question": "?", "answer": "1"}
                | {"option": [f"{letter}. {text}" for letter, text in zip("ABCDE", OPTIONS, strict=True)]}
                for i in range(3)
            ],
            "0a-1b.mp4",
        ),
        LETTER_ANSWERS,
        LETTER_SCORES,
        {"accuracy": THIRD, "no_answer": 1},
    ),
    "videomme": TinyBenchmark(
        with_clip(
            [
                {
                    "question_id": f"001-{i}",
                    "videoID": "fFjv93ACGo8",
                    "question": "?",
                    "answer": "B",
                    "duration": duration,
                }
                | {"options": ["A. cat", "B. dog", "C. cow", "D. hen"], "domain": "d"}
                for i, duration in enumerate(DURATIONS)
            ],
            "fFjv93ACGo8.mp4",
        ),
        LETTER_ANSWERS,
        LETTER_SCORES,
        {"accuracy": THIRD, "accuracy/duration/short": 50.0, "accuracy/duration/long": 0.0, "no_answer": 1},
    ),
    "activitynetqa": TinyBenchmark(
        write_activitynetqa,
        ("yes", "no", "yes", "perhaps"),
        (R, W, N, N),
        {"accuracy": 50.0, "judge_score": 8 / 3, "accuracy/type/0": 100.0, "accuracy/type/1": 0.0, "no_answer": 1},
        replies=(
            "{'pred': 'yes', 'score': 5}",
            "{'pred': 'no', 'score': 0}",
            "good",
            "{'pred': 'perhaps', 'score': 3}",
        ),
    ),
    "captions": TinyBenchmark(
        write_captions,
        ("the cat sits", "nothing like it"),
        (1.0, 0.0),
        {"rouge_l": 50.0, "cider": CIDER},
        metric="rouge_l",
    ),
    "longwrite_ruler": TinyBenchmark(
        write_longbench,
        ("one two three four", "one " * 500),
        (100.0, 50.0),
        {
            "length_score": 75.0,
            "length_score/words/below 500": 100.0,
            "length_score/words/500-2000": 50.0,
            "longest_words": 500.0,
        },
        metric="length_score",
    ),
    "longbench_write": TinyBenchmark(
        write_longbench,
        ("one two three four", ""),
        (100.0, 0.0),
        {"length_score": 50.0, "quality": 75.0, "overall": 62.5, "quality/dimension/Clarity": 25.0, "no_answer": 1},
        replies=(f"```json\n{rate(5, 5, 5, 2, 4, 3)}\n```", "five of five"),
        metric="length_score",
    ),
    "llava_bench": TinyBenchmark(
        write_llava_bench,
        ("A field.", "Red.", ""),
        (6.0, 8.0, N),
        {
            "relative": 77.8,
            "relative/category/conv": 77.8,
            "reference_score": 90.0,
            "model_score": 70.0,
            "no_answer": 1,
        },
        replies=("8 6\nGood.", "10 8", "both are fine"),
        metric="model_score",
    ),
    "mmvet": TinyBenchmark(
        write_mmvet,
        ("a and b", "a", ""),
        (1.0, 0.5, N),
        {
            **{
                "judge_score": 75.0,
                "judge_score/capability/rec": 100.0,
                "judge_score/capability/math": 50.0,
                "no_answer": 1,
            },
            "judge_score/combination/rec_ocr": 100.0,
        },
        replies=("1.0", "0.5 since", "none"),
        metric="judge_score",
    ),
}
"""By task."""

VARIANTS = {
    "gqa": TinyBenchmark(write_gqa_json, ("red", "blue"), (R, W), {"accuracy": 50.0}),
    "seed": TinyBenchmark(
        lambda folder: {
            "data": write_table(
                folder / "SEEDBench_IMG.tsv",
                [
                    {"index": i, "question": "?", **row, "image": base64.b64encode(make_png()).decode()}
                    for i, row in enumerate(LETTERS)
                ],
            )
        },
        ("A", "A", "c", "Answer: D"),
        (R, W, R, W),
        {"accuracy": 50.0},
    ),
    "scienceqa": TinyBenchmark(
        write_scienceqa_ensemble,  # GPT-4 gives no letter to the second, and the judge mends the third
        ("The answer is A.", "The answer is B.", "The answer is C."),
        (W, R, W),
        {"accuracy": THIRD, "complement": 200 / 3, "judge": 200 / 3, "upper_bound": 200 / 3, "gpt4_no_answer": 1},
    ),
    "interleave": TinyBenchmark(
        write_multi_view,
        ("left of it", "right"),
        (1.0, 0.0),
        {"average": 50.0, "average/sub_task/ScanQA": 50.0},
        metric="score",
    ),
    "ai2d": TinyBenchmark(
        lambda folder: {
            "data": write_table(
                folder / "AI2D_TEST.tsv",
                [
                    {"index": i, "question": "?", **row, "image": base64.b64encode(make_png()).decode()}
                    for i, row in enumerate(LETTERS)
                ],
            )
        },
        ("A", "A", "C", ""),
        (R, W, R, W),
        {"accuracy": 50.0},
    ),
}
"""Further published formats and settings."""
