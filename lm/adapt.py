"""Which of a model's parameters are trained? All, adapters on them (LoRA), or the upper layers alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lm.branches import bare
from lm.errors import ModelError


def layers(model: Any) -> list[nn.Module]:
    """The decoder's layers, lowest first. Raises ModelError where they cannot be told."""
    found = getattr(bare(model).base_model, "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise ModelError(f"{bare(model).config.model_type}: its layers are not called `layers`; take another model")
    return list(found)


def freeze(model: Any, lowest: int) -> None:
    """The `lowest` layers and the embedding stay as they are, and a head tied to it too. Raises ModelError."""
    own = layers(model)
    if lowest >= len(own):
        raise ModelError(f"model.freeze {lowest}: the model has {len(own)} layers; leave at least one to train")
    for module in (bare(model).get_input_embeddings(), *own[:lowest]):
        module.requires_grad_(requires_grad=False)


def with_lora(
    model: Any, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], lowest: int, scored: bool
) -> Any:
    """LoRA adapters (Hu et al. 2021) on the named linear layers, or on all but the head, above the `lowest` layers.

    Raises ModelError.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ModuleNotFoundError:
        raise ModelError("model.lora needs peft: pip install 'rlaif-service[train]'") from None
    linear = [name for name, each in model.base_model.named_modules() if isinstance(each, nn.Linear)]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    known = [name for name, each in model.named_modules() if isinstance(each, nn.Linear | nn.Embedding)]
    unknown = [target for target in targets if not any(_ends(name, target) for name in known)]
    if unknown:
        raise ModelError(
            f"model.lora_targets {' '.join(unknown)}: no linear layer of the model has such a name; it has"
            f" {', '.join(kinds)}"
        )
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if ends[1] is not None and ends[0].weight is ends[1].weight:
        one = [name for name, each in model.named_modules() if each in ends]
        if shared := [target for target in targets if any(_ends(name, target) for name in one)]:
            raise ModelError(
                f"model.lora_targets {' '.join(shared)}: the embedding and the head of this model are one matrix, which"
                " an adapter on one of them would tear apart"
            )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  peft scales by it as it is
        lora_dropout=dropout,
        target_modules=list(targets or kinds),
        layers_to_transform=list(range(lowest, len(layers(model)))) if lowest else None,
        task_type=TaskType.SEQ_CLS if scored else TaskType.CAUSAL_LM,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in a way that will go
        return get_peft_model(model, config)


def _ends(name: str, target: str) -> bool:
    """Whether peft takes a module of this name for the target."""
    return name == target or name.endswith(f".{target}")


def merged(model: Any) -> Any:
    """The model of transformers with its adapters added to its weights: for writing; training cannot go on with it."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


@torch.no_grad()
def weights(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the model of transformers under its own names, copied to the CPU, adapters added: what another
    engine loads while training goes on here.
    """
    inner = bare(model)
    adapted = {name: each for name, each in inner.named_modules() if hasattr(each, "get_delta_weight")}
    for name, parameter in inner.named_parameters():
        if any(part.startswith("lora_") for part in name.split(".")):
            continue
        module = adapted.get(name.partition(".base_layer.")[0]) if name.endswith(".base_layer.weight") else None
        whole = parameter if module is None else parameter + module.get_delta_weight(module.active_adapters[0])
        yield name.replace(".base_layer.", "."), whole.to("cpu", dtype, copy=True)
