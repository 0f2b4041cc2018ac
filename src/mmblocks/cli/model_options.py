"""How commands name a model."""

MODEL_FORMS = "a folder of mmblocks, transformers or LLaVA, or org/name[@revision] on the Hugging Face hub"
MODEL_HELP = f"{MODEL_FORMS} (default: the bundled tiny model)"
