"""Models of mmblocks for lmms-eval: its entry point `lmms_eval.models` finds them, `--model mmblocks` chooses them."""
