"""A reference that shares the frozen layers of a policy: their tensors, and what they compute (trlX's hydra)."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from lm import adapt
from lm.branches import bare


def reference(model: Any, lowest: int) -> Any:
    """A frozen copy of the model as it is, with the lowest layers shared.

    It continues what those layers made in the model's last pass: ask the model first, then this, about the same pack.
    """
    layers = adapt.layers(model)
    shared = {id(each): each for layer in layers[:lowest] for each in layer.parameters()}
    embedding = bare(model).get_input_embeddings()
    shared |= {id(each): each for each in embedding.parameters()}
    made = copy.deepcopy(bare(model), shared)
    made.requires_grad_(requires_grad=False)
    for each in embedding.parameters():  # shared with the model, which may be training a head that is tied to it
        each.requires_grad_(requires_grad=False)
    trunk = _Trunk()
    layers[lowest - 1].register_forward_hook(trunk.keep)
    own = adapt.layers(made)
    for at in range(lowest):
        bare(made).base_model.layers[at] = _Given(trunk, own[at])
    return made.eval()


class _Trunk:
    """What the shared layers made last."""

    def __init__(self) -> None:
        self.made: Any = None

    def keep(self, _module: nn.Module, _given: Any, made: Any) -> None:
        self.made = made


class _Given(nn.Module):
    """Stands in a shared layer's place and gives what it made."""

    def __init__(self, trunk: _Trunk, layer: nn.Module) -> None:
        super().__init__()
        self._trunk = trunk
        self.attention_type = getattr(layer, "attention_type", None)  # some models ask each layer for it

    def forward(self, *_given: Any, **_named: Any) -> Any:
        return self._trunk.made
