"""What a model computes over a long context and packs do not, found on shapes alone before any weight is read."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel

from trainer.model.attention import UnsupportedAttention
from trainer.model.layout import AttentionLayout, Span
from trainer.model.loading import UnsupportedModel

log = logging.getLogger(__name__)

FIXED_ROPE = ("default", "linear", "yarn", "llama3", "proportional")
"""Rotary frequencies that are one table for every sequence, whatever its length."""
ROPE_OF_LENGTH = ("dynamic", "longrope")
"""transformers chooses these frequencies by the longest position of a call, which in a pack is another sequence's; up
to the length of pre-training they are one table too."""


def check_context(model: PreTrainedModel, context: int) -> None:
    """Refuses a model, still on the meta device, whose sequences of up to `context` tokens are not computed exactly.

    Raises:
        UnsupportedModel: rotary frequencies that depend on a sequence's length, or that are not known here.
        UnsupportedAttention: a sliding window shorter than the context, soft caps, sinks.
    """
    of_length = _check_rope(model, context)
    if of_length:
        log.info("rotary frequencies are fixed up to %d tokens; attention is checked at the first step", context)
        return
    # The model's own code says what each layer asks of attention; on shapes alone it costs no memory. Fake tensors,
    # because transformers looks into the positions of others for documents.
    layout = AttentionLayout((Span(0, context, ()),))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            ids = torch.zeros(1, context, dtype=torch.int64, device="meta")
            model.base_model(input_ids=ids, position_ids=ids, use_cache=False, layout=layout)
    except UnsupportedAttention as error:
        raise type(error)(f"{type(model).__name__} with batch.context {context}: {error}") from None


def _check_rope(model: PreTrainedModel, context: int) -> bool:
    """Whether frequencies of length are in use; UnsupportedModel where they, or unknown ones, would be wrong."""
    name, of_length = type(model).__name__, False
    for parameters in _rope_parameters(model.config):
        kind = parameters.get("rope_type", "default")
        if kind in FIXED_ROPE:
            continue
        if kind not in ROPE_OF_LENGTH:
            raise UnsupportedModel(f"{name}: rope_type {kind!r} is not known here; use one of {', '.join(FIXED_ROPE)}")
        longest = parameters.get("original_max_position_embeddings") or model.config.max_position_embeddings
        if context > longest:
            raise UnsupportedModel(
                f"{name}: rope_type {kind!r} makes frequencies by a sequence's length beyond {longest} tokens, and a "
                f"pack holds several: set batch.context to {longest} or less, or rope_type: yarn in config.json"
            )
        of_length = True
    return of_length


def _rope_parameters(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Of every kind of layer; [] for a model without rotary positions."""
    found = getattr(config, "rope_parameters", None) or {}
    if all(isinstance(value, dict) for value in found.values()):
        return list(found.values())
    return [found]
