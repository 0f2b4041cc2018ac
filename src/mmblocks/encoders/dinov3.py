from typing import Any

from mmblocks.components import encoders
from mmblocks.encoders import vit
from mmblocks.encoders.transformers_vit import TransformersViT
from mmblocks.faults import Fault


@encoders.register(
    "dinov3",
    source="https://arxiv.org/abs/2508.10104",
    tiny={"image_px": 32, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24},
    verified_against="transformers DINOv3ViTModel",
)
class DINOv3(TransformersViT):
    """DINOv3's vision transformer with rotary positions: patches after the block that `layer` names.

    `layer` counts as transformers' hidden_states (-1: last block); later blocks are not built, and several layers stand
    side by side in the channels (`dim` in the settings is the width of one). With `norm` the model's final LayerNorm
    follows, on every layer that is given. The class token and the registers are dropped. Positions are fractions of
    the view, so any `image_px` will do.

    In training, positions are not stretched at random as they were when DINOv3 was trained: a view gives the same
    features whenever it is seen. `gated` (H+ and 7B) has a SiLU gate in the MLP; `qv_bias` is off in 7B alone. Mean and
    std are those of the models trained on web images (lvd1689m), not of the satellite ones.

    Tensor names are transformers' under `tower.`: `tower.model.layer.0.attention.q_proj.weight`.
    """

    name = "dinov3"
    example_checkpoint = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    pixel_mean = vit.IMAGENET_MEAN
    pixel_std = vit.IMAGENET_STD
    squash = True
    tower_name = "tower"
    patch_conv = "embeddings.patch_embeddings"
    final_norm = "norm"
    states_image_px = False

    def __init__(
        self,
        image_px: int = 224,
        patch_px: int = 16,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        mlp_dim: int = 4096,
        gated: bool = False,
        qv_bias: bool = True,
        registers: int = 4,
        layer: vit.Layer = -1,
        norm: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(
            image_px=image_px,
            patch_px=patch_px,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            layer=layer,
            checkpoint=checkpoint,
            prefix_tokens=1 + registers,
            gated=gated,
            hidden_act="silu" if gated else "gelu",
            query_bias=qv_bias,
            key_bias=False,
            value_bias=qv_bias,
            registers=registers,
            norm_eps=1e-5,
        )
        faults = []
        if dim // heads % 4:
            faults.append(
                Fault("", f"dim={dim} with heads={heads} gives {dim // heads} channels per head, not a multiple of 4")
            )
        if registers < 0:
            faults.append(Fault("registers", f"registers={registers} is no number of tokens"))
        vit.raise_faults("dinov3", faults)
        from transformers import DINOv3ViTModel

        tower = self.make_tower(DINOv3ViTModel, pos_embed_shift=None, pos_embed_jitter=None, pos_embed_rescale=None)
        tower.embeddings.mask_token = None
        self.install_tower(tower, unused=() if norm else ("norm",))
        self.register_load_state_dict_post_hook(DINOv3.refill_buffers)

    def refill_buffers(self, _: object = None) -> None:
        """Make the frequencies of the rotary positions, which no checkpoint holds, where they are still on meta."""
        rope: Any = self.get_submodule("tower.rope_embeddings")
        vit.refill_buffers(rope, next(self.parameters()).device, lambda: type(rope)(rope.config))


encoders.preset("dinov3_vitl16", of="dinov3", checkpoint="facebook/dinov3-vitl16-pretrain-lvd1689m")
encoders.preset(
    "dinov3_vits16",
    of="dinov3",
    checkpoint="facebook/dinov3-vits16-pretrain-lvd1689m",
    dim=384,
    depth=12,
    heads=6,
    mlp_dim=1536,
)
encoders.preset(
    "dinov3_vits16plus", of="dinov3_vits16", checkpoint="facebook/dinov3-vits16plus-pretrain-lvd1689m", gated=True
)
encoders.preset(
    "dinov3_vitb16",
    of="dinov3",
    checkpoint="facebook/dinov3-vitb16-pretrain-lvd1689m",
    dim=768,
    depth=12,
    heads=12,
    mlp_dim=3072,
)
encoders.preset(
    "dinov3_vith16plus",
    of="dinov3",
    checkpoint="facebook/dinov3-vith16plus-pretrain-lvd1689m",
    dim=1280,
    depth=32,
    heads=20,
    mlp_dim=5120,
    gated=True,
)
encoders.preset(
    "dinov3_vit7b16",
    of="dinov3",
    checkpoint="facebook/dinov3-vit7b16-pretrain-lvd1689m",
    dim=4096,
    depth=40,
    heads=32,
    mlp_dim=8192,
    gated=True,
    qv_bias=False,
)
