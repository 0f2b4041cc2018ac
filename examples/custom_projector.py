"""A projector of your own: register it here, use it by name, run it in a whole model.

    python examples/custom_projector.py

In a file under src/mmblocks/projectors, or behind an entry point of your own package, the same class is also in
`mmblocks list`, in `model/projector=geglu` of every recipe and in the tests that every projector must pass.
"""

import torch.nn.functional as F
from torch import Tensor, nn

import mmblocks
from mmblocks import collate
from mmblocks.assets import find_media
from mmblocks.components import projectors
from mmblocks.conversation import Conversation
from mmblocks.errors import ConfigError
from mmblocks.projectors.mlp import PerToken


class GatedGELU(nn.Module):
    """gelu(gate(x)) * up(x).   Shape: (..., in_dim) -> (..., hidden_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(in_dim, hidden_dim)
        self.up = nn.Linear(in_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.gate(x)) * self.up(x)


@projectors.register("geglu", source="https://arxiv.org/abs/2002.05202", tiny={"expansion": 2.0})
class GEGLU(PerToken):
    """GEGLU per patch: down(gelu(gate(x)) * up(x)).   Shape: (..., in_dim) -> (..., out_dim)."""

    def __init__(self, in_dim: int, out_dim: int, expansion: float = 4.0) -> None:
        super().__init__()
        hidden_dim = round(in_dim * expansion)
        self.body = GatedGELU(in_dim, hidden_dim)
        self.head = nn.Linear(hidden_dim, out_dim)


def main() -> None:
    """Train-step a model with it, and show what a wrong setting is told."""
    spec = {"encoder": "tiny_conv", "backbone": "qwen2_tiny", "template": "chatml"}
    model = mmblocks.build(spec, projector={"name": "geglu", "expansion": 2}, seed=0)
    loss = model(collate([mmblocks.Processor.from_model(model).make_training_sample(captioned())])).loss
    loss.backward()
    unreached = [name for name, p in model.projector.named_parameters() if p.grad is None]
    print(f"loss {loss.item():.2f}; parameters of the projector without a gradient: {unreached or 'none'}")
    try:
        mmblocks.build(spec, projector={"name": "geglu", "expantion": 2})
    except ConfigError as error:
        print(error)


def captioned() -> Conversation:
    """An image and what should be said of it."""
    asked = [{"type": "image", "image": find_media("image.png")}, {"type": "text", "text": "Describe the image."}]
    told = "a blue square, a red circle and a yellow triangle"
    return Conversation.from_messages([{"role": "user", "content": asked}, {"role": "assistant", "content": told}])


if __name__ == "__main__":
    main()
