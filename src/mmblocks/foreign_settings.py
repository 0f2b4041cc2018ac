"""Names of settings that people type by habit, from other trainers or earlier versions of this one, and ours for them."""

from collections.abc import Collection

_TABLE = (
    # typed; ours; what it belongs to; what differs
    ("lr learning_rate rate base_lr mm_projector_lr mm_vision_tower_lr", "lr", "a part in a stage's `train`",
     "write train: {projector: 1e-3, backbone: 1e-5}"),
    ("global_batch_size batch_size per_device_train_batch_size per_gpu_train_batch_size train_batch_size micro_batch_size",
     "global_batch_size", "a stage", "samples per step on all devices together"),
    ("gradient_accumulation_steps gradient_accumulation grad_accum accumulation_steps accumulate_grad_batches",
     "global_batch_size", "a stage", "gradients are accumulated until a step has its samples; pack_tokens bounds one pass"),
    ("model_max_length max_length max_seq_length max_seq_len cutoff_len seq_len", "max_tokens", "a stage",
     "the longest sample; the backbone has max_tokens of its own"),
    ("epochs num_train_epochs num_epochs max_epochs epoch", "epochs", "a stage", ""),
    ("steps max_steps num_steps total_steps num_train_steps train_steps", "steps", "a stage", "optimizer steps"),
    ("warmup warmup_ratio warmup_steps num_warmup_steps", "warmup", "a stage", "a share of the steps, such as 0.03"),
    ("schedule lr_scheduler_type lr_scheduler lr_schedule scheduler", "schedule", "a stage", "cosine, linear or constant"),
    ("weight_decay wd decay", "weight_decay", "a stage, or a part in its `train`", ""),
    ("max_grad_norm clip clip_grad grad_clip clip_grad_norm gradient_clip gradient_clip_val max_norm", "max_grad_norm",
     "a stage", ""),
    ("clip clips", "video", "the scenarios of model.tokenizer", ""),
    ("picture pictures", "image", "the scenarios of model.tokenizer", ""),
    ("beta2 adam_beta2", "beta2", "a stage", ""),
    ("precision bf16 fp16 tf32 dtype torch_dtype mixed_precision", "precision", "a stage", "float32 or bfloat16"),
    ("gradient_checkpointing recompute activation_checkpointing use_gradient_checkpointing", "gradient_checkpointing",
     "the run", "true or false"),
    ("template conv_mode conv_template chat_template", "template", "a stage, or the model", ""),
    ("order group_by_length group_by_modality_length", "order", "a stage", "mixed, length or modality_length"),
    ("marks mark learned_token", "learned_tokens", "a stage's `train`", ""),
    ("lora_r lora_rank r", "rank", "lora in a stage's `train`", "write train: {lora: {lr: 2e-4, rank: 64}}"),
    ("lora_alpha", "alpha", "lora in a stage's `train`", "write train: {lora: {lr: 2e-4, alpha: 16}}"),
    ("lora_dropout", "dropout", "lora in a stage's `train`", "write train: {lora: {lr: 2e-4, dropout: 0.05}}"),
    ("lora lora_enable use_lora", "lora", "a stage's `train`", "write train: {lora: 2e-4}"),
    ("freeze_backbone freeze_encoder freeze_vision_tower tune_mm_mlp_adapter unfreeze_mm_vision_tower mm_tunable_parts freeze",
     "train", "a stage", "it names the parts that learn; the others are frozen"),
    ("encoder_pretraining sight", "encoder_pretraining", "the run", ""),
    ("first_stage start_at start_from", "first_stage", "the run", "the name of a stage"),
    ("last_stage stop_after stop_at", "last_stage", "the run", "the name of a stage"),
    ("visual_ablation_at look_at", "visual_ablation_at", "the run", "a step"),
    ("out output_dir out_dir save_dir", "out", "the run", "a folder"),
    ("save_every save_steps save_interval", "save_every", "the run", "steps"),
    ("keep save_total_limit", "keep", "the run", ""),
    ("log_every logging_steps log_interval log_steps", "log_every", "the run", "steps"),
    ("track report_to logger", "track", "the run", "[tensorboard, wandb]"),
    ("keep_best load_best_model_at_end save_best", "keep_best", "the run", ""),
    ("workers dataloader_num_workers num_workers", "workers", "the run", ""),
    ("resume resume_from_checkpoint resume_from", "resume", "the run", "true continues what is in `out`"),
    ("eval_steps eval_interval evaluation_strategy eval_strategy", "evaluate", "the run", "write evaluate: {every: 500, ...}"),
    ("weights model_name_or_path pretrained", "weights", "the run", "random, pretrained or the folder of a saved model"),
    ("data data_path train_data datasets dataset train_files", "data", "a stage", "a list of sources"),
    ("subset take max_samples", "subset", "a source in `data`", "all, first:N, end:N or random:N"),
    ("image_folder image_root image_dir", "images", "a source in `data`", ""),
    ("video_folder video_root video_dir", "videos", "a source in `data`", ""),
    ("encoder vision_tower vision_encoder", "encoder", "the model", "write model/encoder=NAME"),
    ("projector mm_projector_type mm_projector", "projector", "the model", "write model/projector=NAME"),
    ("backbone llm language_model", "backbone", "the model", "write model/backbone=NAME"),
    ("deepspeed fsdp zero_stage zero", "", "", "There is no such setting: started by torchrun, a run shards its model over the processes"),
    ("optim optimizer optimizer_type", "", "", "There is no such setting: the optimizer is AdamW"),
)  # fmt: skip


def explain_foreign_setting(name: str, known: Collection[str]) -> str:
    """What a setting that is not known in a place is called here, and where it belongs; empty where nobody can tell."""
    rows = [row[1:] for row in _TABLE if name in row[0].split()]
    for ours, place, note in sorted(rows, key=lambda row: row[0] not in known):
        if not ours:
            return f"{note}."
        if ours in known:
            return f"Write {ours!r}{'' if not note or note.startswith('write') else f' ({note})'}."
        called = "It belongs" if ours == name else f"It is called {ours!r} here and belongs"
        return f"{called} to {place}{note and f': {note}'}."
    return ""
