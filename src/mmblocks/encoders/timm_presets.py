"""Published vision towers that timm holds: AIMv2, Perception Encoder, C-RADIO, MobileCLIP 2 and FastVLM's."""

from mmblocks.components import encoders
from mmblocks.shapes import Size

# AIMv2: the last block and the norm behind it, as apple/ml-aim gives features.
encoders.preset(
    "aimv2_large_224", of="timm_vit", model_name="aimv2_large_patch14_224.apple_pt", checkpoint="pretrained"
)
encoders.preset("aimv2_large_336", of="aimv2_large_224", model_name="aimv2_large_patch14_336.apple_pt")
encoders.preset("aimv2_large_448", of="aimv2_large_224", model_name="aimv2_large_patch14_448.apple_pt")
encoders.preset("aimv2_huge_224", of="aimv2_large_224", model_name="aimv2_huge_patch14_224.apple_pt")
encoders.preset("aimv2_huge_336", of="aimv2_large_224", model_name="aimv2_huge_patch14_336.apple_pt")
encoders.preset("aimv2_huge_448", of="aimv2_large_224", model_name="aimv2_huge_patch14_448.apple_pt")
encoders.preset("aimv2_1b_224", of="aimv2_large_224", model_name="aimv2_1b_patch14_224.apple_pt")
encoders.preset("aimv2_1b_336", of="aimv2_large_224", model_name="aimv2_1b_patch14_336.apple_pt")
encoders.preset("aimv2_1b_448", of="aimv2_large_224", model_name="aimv2_1b_patch14_448.apple_pt")
encoders.preset("aimv2_3b_224", of="aimv2_large_224", model_name="aimv2_3b_patch14_224.apple_pt")
encoders.preset("aimv2_3b_336", of="aimv2_large_224", model_name="aimv2_3b_patch14_336.apple_pt")
encoders.preset("aimv2_3b_448", of="aimv2_large_224", model_name="aimv2_3b_patch14_448.apple_pt")

# PE core: PE lang, made of it for language models, ends with block 23 of 24 (L) and 47 of 50 (G).
encoders.preset("pe_core_t_384", of="pe_core_l_336", model_name="vit_pe_core_tiny_patch16_384.fb")
encoders.preset("pe_core_s_384", of="pe_core_l_336", model_name="vit_pe_core_small_patch16_384.fb")
encoders.preset("pe_core_b_224", of="pe_core_l_336", model_name="vit_pe_core_base_patch16_224.fb")
encoders.preset("pe_core_g_448", of="pe_core_l_336", model_name="vit_pe_core_gigantic_patch14_448.fb", layer=47)

# PE lang: the last block; it is published without a final norm. The weights "tiling" saw images in tiles.
encoders.preset(
    "pe_lang_l_448", of="timm_vit", model_name="vit_pe_lang_large_patch14_448.fb", checkpoint="pretrained", norm=False
)
encoders.preset("pe_lang_l_448_tiling", of="pe_lang_l_448", model_name="vit_pe_lang_large_patch14_448.fb_tiling")
encoders.preset("pe_lang_g_448", of="pe_lang_l_448", model_name="vit_pe_lang_gigantic_patch14_448.fb")
encoders.preset("pe_lang_g_448_tiling", of="pe_lang_l_448", model_name="vit_pe_lang_gigantic_patch14_448.fb_tiling")

# C-RADIO: the last block, published without a final norm; positions are those of RADIO's grid at 512 pixels.
encoders.preset(
    "c_radio_v3_b_512",
    of="timm_vit",
    model_name="vit_base_patch16_radio_v3.c_radio",
    checkpoint="pretrained",
    norm=False,
)
encoders.preset("c_radio_v3_l_512", of="c_radio_v3_b_512", model_name="vit_large_patch16_radio_v3.c_radio")
encoders.preset("c_radio_v3_h_512", of="c_radio_v3_b_512", model_name="vit_huge_patch16_radio_v3.c_radio")
encoders.preset("c_radio_v3_g_512", of="c_radio_v3_b_512", model_name="vit_giant_patch16_radio_v3.c_radio")
encoders.preset("c_radio_v4_so400m_512", of="c_radio_v3_b_512", model_name="vit_so400m_patch16_radio_v4.c_radio")
encoders.preset("c_radio_v4_h_512", of="c_radio_v3_b_512", model_name="vit_huge_patch16_radio_v4.c_radio")

# MobileCLIP 2's FastViT: the last stage, before the convolution that widens it for CLIP's head.
encoders.preset(
    "mobileclip2_s0_256", of="timm_features", model_name="fastvit_mci0.apple_mclip2_dfndr2b", checkpoint="pretrained"
)
encoders.preset("mobileclip2_s2_256", of="mobileclip2_s0_256", model_name="fastvit_mci2.apple_mclip2_dfndr2b")
encoders.preset("mobileclip2_s3_256", of="mobileclip2_s0_256", model_name="fastvit_mci3.apple_mclip2_dfndr2b")
encoders.preset("mobileclip2_s4_256", of="mobileclip2_s0_256", model_name="fastvit_mci4.apple_mclip2_dfndr2b")

# FastVLM's FastViTHD, as transformers builds it: timm's name of the architecture is fastvit_mci3, the last stage is
# followed by its convolution, and pixels are not normalised. Its weights are published inside of FastVLM only.
encoders.preset(
    "fastvithd_1024",
    of="hf_vision",
    checkpoint="KamilaMila/FastVLM-7B",
    family="timm_wrapper",
    sizes={"architecture": "fastvit_mci3", "model_args": {"inference_mode": True}},
    image_px=1024,
    grid=Size(16, 16),
    prefix_tokens=0,
    pixel_mean=(0.0, 0.0, 0.0),
    pixel_std=(1.0, 1.0, 1.0),
    squash=False,
)
