from typing import Any

from mmblocks.components import encoders
from mmblocks.encoders import vit
from mmblocks.encoders.transformers_vit import TransformersViT
from mmblocks.faults import Fault


@encoders.register(
    "dinov2",
    source="https://arxiv.org/abs/2304.07193",
    tiny={"image_px": 30, "trained_px": 42, "dim": 16, "depth": 3, "heads": 2, "registers": 2},
    verified_against="transformers Dinov2Model and Dinov2WithRegistersModel",
)
class DINOv2(TransformersViT):
    """DINOv2's vision transformer, with or without registers: patches after the block that `layer` names.

    `layer` counts as transformers' hidden_states (-1: last block); later blocks are not built, and several layers stand
    side by side in the channels (`dim` in the settings is the width of one). With `norm` the model's final LayerNorm
    follows, on every layer that is given. The class token and the registers are dropped.

    `trained_px` is the view that the position embeddings were trained for (518 in what was published); at another
    `image_px` they are interpolated as transformers does it, with antialiasing where the model has registers.

    Tensor names are those of published checkpoints under `tower.`: `tower.encoder.layer.0.attention...`.
    """

    name = "dinov2"
    example_checkpoint = "facebook/dinov2-large"
    pixel_mean = vit.IMAGENET_MEAN
    pixel_std = vit.IMAGENET_STD
    squash = False
    tower_name = "tower"
    patch_conv = "embeddings.patch_embeddings.projection"
    final_norm = "layernorm"
    states_image_px = False

    def __init__(
        self,
        image_px: int = 518,
        patch_px: int = 14,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        mlp_ratio: int = 4,
        swiglu: bool = False,
        registers: int = 0,
        trained_px: int = 518,
        layer: vit.Layer = -1,
        norm: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        further: dict[str, Any] = {"registers": registers} if registers else {}
        super().__init__(
            image_px=image_px,
            patch_px=patch_px,
            dim=dim,
            depth=depth,
            heads=heads,
            layer=layer,
            checkpoint=checkpoint,
            prefix_tokens=1 + registers,
            trained_px=trained_px,
            mlp_ratio=mlp_ratio,
            swiglu=swiglu,
            norm_eps=1e-6,
            **further,
        )
        faults = []
        if trained_px < patch_px:
            faults.append(Fault("trained_px", f"trained_px={trained_px} holds no whole patch of patch_px={patch_px}"))
        if registers < 0:
            faults.append(Fault("registers", f"registers={registers} is no number of tokens"))
        vit.raise_faults("dinov2", faults)
        from transformers import Dinov2Model, Dinov2WithRegistersModel

        tower = self.make_tower(Dinov2WithRegistersModel if registers else Dinov2Model)
        tower.embeddings.mask_token = None  # it stands in for no patch of a whole image
        self.install_tower(tower, unused=() if norm else ("layernorm",))


encoders.preset("dinov2_large", of="dinov2", checkpoint="facebook/dinov2-large")
encoders.preset("dinov2_small", of="dinov2", checkpoint="facebook/dinov2-small", dim=384, depth=12, heads=6)
encoders.preset("dinov2_base", of="dinov2", checkpoint="facebook/dinov2-base", dim=768, depth=12, heads=12)
encoders.preset(
    "dinov2_giant", of="dinov2", checkpoint="facebook/dinov2-giant", dim=1536, depth=40, heads=24, swiglu=True
)
encoders.preset("dinov2_reg_small", of="dinov2_small", checkpoint="facebook/dinov2-with-registers-small", registers=4)
encoders.preset("dinov2_reg_base", of="dinov2_base", checkpoint="facebook/dinov2-with-registers-base", registers=4)
encoders.preset("dinov2_reg_large", of="dinov2", checkpoint="facebook/dinov2-with-registers-large", registers=4)
encoders.preset("dinov2_reg_giant", of="dinov2_giant", checkpoint="facebook/dinov2-with-registers-giant", registers=4)
