"""``nn.MultiheadAttention`` in steps, because torch hides the input of its output projection from hooks.

Torch computes it by one function that takes all parameters. `attend` computes the same from the layer's parameters and
calls ``out_proj`` as the module that it is, so that hooks see what goes in. What the projections of queries, keys and
values give goes straight on into the products, as in a fused kernel.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import nn

from profiles.errors import NetworkError

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def check_supported(path: str, layer: nn.MultiheadAttention) -> None:
    """Raises NetworkError for a layer that puts keys of its own beside those of its input."""
    if layer.bias_k is not None or layer.add_zero_attn:
        raise NetworkError(
            f"{path} is nn.MultiheadAttention with add_bias_kv or add_zero_attn, which are not supported; make it "
            "without, or of separate Linear layers and functional.scaled_dot_product_attention"
        )


def attend(
    layer: nn.MultiheadAttention,
    inputs: Tensors,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What ``layer`` returns for ``inputs``: query, key and value; the rest is as in ``nn.MultiheadAttention``.

    Raises:
        NetworkError: ``is_causal`` without the mask that it is a hint for.
    """
    if is_causal and attn_mask is None:
        raise NetworkError("is_causal is but a hint; give attn_mask too, as nn.MultiheadAttention asks for")
    batched = inputs[0].dim() == 3
    query, key, value = _projected(layer, *(_batch_first(layer, each) for each in inputs))
    mask = _merged(layer, query, key, key_padding_mask, attn_mask)
    dropout = layer.dropout if layer.training else 0.0
    weights = None
    if need_weights:
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = functional.dropout(weights, dropout)
        context = weights @ value
        weights = weights.mean(dim=1) if average_attn_weights else weights
    else:
        context = functional.scaled_dot_product_attention(query, key, value, mask, dropout)
    output = layer.out_proj(context.transpose(1, 2).flatten(2))
    if not batched:
        return output.squeeze(0), None if weights is None else weights.squeeze(0)
    return output if layer.batch_first else output.transpose(0, 1), weights


def _batch_first(layer: nn.MultiheadAttention, values: torch.Tensor) -> torch.Tensor:
    """[n, length, width]."""
    if values.dim() == 2:
        return values.unsqueeze(0)
    return values if layer.batch_first else values.transpose(0, 1)


def _projected(layer: nn.MultiheadAttention, *inputs: torch.Tensor) -> Tensors:
    """Queries, keys and values: [n, heads, length, width of a head] each."""
    apart = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    weights: Sequence[torch.Tensor] = apart if layer.in_proj_weight is None else layer.in_proj_weight.chunk(3)
    biases = (None, None, None) if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    query, key, value = (
        functional.linear(*each).view(*each[0].shape[:2], layer.num_heads, layer.head_dim).transpose(1, 2)
        for each in zip(inputs, weights, biases, strict=True)
    )
    return query, key, value


def _merged(
    layer: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    padding: torch.Tensor | None,
    attention: torch.Tensor | None,
) -> torch.Tensor | None:
    """Both masks as one to add to the scores, which are [n, heads, queries, keys]."""
    masks = []
    if padding is not None:
        masks.append(_to_add(padding, query).view(-1, 1, 1, key.shape[2]))
    if attention is not None:
        shape = (query.shape[2], key.shape[2])
        masks.append(_to_add(attention, query).view(*((-1, layer.num_heads) if attention.dim() == 3 else ()), *shape))
    return sum(masks[1:], masks[0]) if masks else None


def _to_add(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """``mask`` as it is added to scores; True of a bool mask forbids."""
    if mask.dtype != torch.bool:
        return mask.to(query.dtype)
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(mask, -math.inf)
