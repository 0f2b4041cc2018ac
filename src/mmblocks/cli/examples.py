"""An example of each command, shown at the end of its help.

A test runs them in this order in one folder, except those that need a downloaded checkpoint.
"""

EXAMPLES = {
    "demo": "mmblocks demo",
    "list": "mmblocks list projector",
    "show": "mmblocks show encoder siglip_so400m_384",
    "recipes": "mmblocks recipes tiny/onevision model/projector=linear",
    "check": "mmblocks check llava_next/vicuna_7b model/projector=gated",
    "plan": "mmblocks plan onevision/7b image=1000x700 video=1280x720@30s",
    "inspect": "mmblocks inspect tiny/onevision --stage align --record 0",
    "train": "mmblocks train tiny/onevision budget=0.002 out=runs/quick",
    "sweep": "mmblocks sweep tiny/onevision model/projector=mlp,linear last_stage=align budget=0.001 --score 'tiny limit=20' --out runs/sweep",
    "diff": "mmblocks diff runs/sweep/projector-mlp runs/sweep/projector-linear",
    "eval": "mmblocks eval runs/quick/model tiny --limit 20",
    "chat": "mmblocks chat --image my.jpg --ask 'How many shapes are there?'",
    "serve": "mmblocks serve --port 8000",
    "convert": "mmblocks convert llava-onevision-qwen2-7b-ov-hf models/7b",
    "swap": "mmblocks swap runs/quick/model projector=gated --out swapped",
    "new": "mmblocks new projector my_projector",
    "doctor": "mmblocks doctor",
    "completion": "mmblocks completion bash",
}
"""One line per command, as typed in a shell; my.jpg is a file of the user."""


def format_example(command: str) -> str:
    """The end of a command's help."""
    return f"example:\n  {EXAMPLES[command]}"
