"""Self-attention in a window, and what a window leaves out of it: tensors alone (DiTFastAttn, NeurIPS 2024)."""

import torch
import torch.nn.functional as F


def split_attention(
    module: torch.nn.Module, x: torch.Tensor, window: float, rest: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention as what a window gives, and the rest of it. Returns the module's output, and the rest.

    x: [B, N, C]; window: a share of the N tokens; rest: [B, heads, N, C / heads] of an earlier step, taken as it is;
    computed, so that the output is that of full attention, if None.
    """
    q, k, v = (
        project(x).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for project in (module.to_q, module.to_k, module.to_v)
    )
    near = window_attention(q, k, v, max(1, int(window * x.shape[1])))
    heads = F.scaled_dot_product_attention(q, k, v) if rest is None else near + rest
    rest = heads - near if rest is None else rest
    return module.to_out[0](heads.transpose(1, 2).flatten(2)), rest


def window_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """Attention [B, H, N, D] of every token to the `window` tokens before it and after it, and to itself.

    Queries go in chunks, each with the keys that any of them sees: the work grows with N * window, not with N * N.
    """
    n = q.shape[2]
    if window >= n - 1:
        return F.scaled_dot_product_attention(q, k, v)
    chunk = max(16, window // 2)
    pad, span = -n % chunk, chunk + 2 * window
    q = F.pad(q, (0, 0, 0, pad)).unflatten(2, (-1, chunk))
    k, v = (F.pad(a, (0, 0, window, window + pad)).unfold(2, span, chunk).transpose(-1, -2) for a in (k, v))
    offset = torch.arange(span, device=q.device) - torch.arange(chunk, device=q.device)[:, None]
    start = torch.arange(0, n + pad, chunk, device=q.device)[:, None, None]
    key = start + torch.arange(span, device=q.device) - window
    seen = (offset >= 0) & (offset <= 2 * window) & (key >= 0) & (key < n)
    # A chunk is to the kernel what a head is: four dimensions are what the fused ones take.
    out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=seen)
    return out.unflatten(0, q.shape[:2]).flatten(2, 3)[:, :, :n]
