"""What a pipeline in memory is: 12 hex digits of all that its images depend on but prompt, seed and call."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import torch

# Of configs and modules: where a part is from and what wrote it, which is nothing that it computes with.
NOT_MEANT = {
    "name_or_path", "_name_or_path", "_commit_hash", "_diffusers_version", "transformers_version", "architectures",
    "torch_dtype", "dtype", "config", "_internal_dict", "generation_config", "warnings_issued",
}  # fmt: skip
# What torch keeps in a module beside parameters and what its class sets.
_OF_TORCH = set(vars(torch.nn.Module())) - {"training", "_forward_hooks", "_forward_pre_hooks"}


def identity(pipe: Any) -> str:
    """12 hex digits of a diffusers pipeline's modules, tokenizers, scheduler and own config; on any device the same.

    Of a module: its config, every tensor (name, dtype, shape and bytes, adapters among them), and what is set on it and
    on those below it: an adapter's scale and whether it is active, FreeU, tiling, attention processors, hooks, training
    mode. Where a part was read from does not count.
    """
    digest = sha256()
    settings = {key: value for key, value in pipe.config.items() if key not in pipe.components}
    _add(digest, "pipeline", type(pipe).__name__, _plain(settings))
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            _add(digest, name, type(part).__name__, _plain(_config(part)))
            for path, module in part.named_modules():
                _add(digest, path, _plain(type(module)), _settings(module))
            for key, tensor in sorted({**part.state_dict(), **dict(part.named_buffers())}.items()):
                _add(digest, key, *_tensor(tensor))
        elif hasattr(part, "backend_tokenizer"):
            _add(digest, name, type(part).__name__, _tokenizer(part))
        elif hasattr(part, "config"):
            _add(digest, name, type(part).__name__, _plain(_config(part)))
        elif part is not None:
            _add(digest, name, _plain(part))
    return digest.hexdigest()[:12]


def _add(digest: Any, *values: Any) -> None:
    digest.update(json.dumps(values, sort_keys=True).encode() + b"\n")


def _config(part: Any) -> dict[str, Any]:
    return part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)


def _settings(module: torch.nn.Module) -> Any:
    """What is set on a module itself. An attention processor is no module, and has settings too."""
    own = {key: value for key, value in vars(module).items() if key not in _OF_TORCH}
    hooks = {key: list(own.pop(key).values()) for key in ("_forward_hooks", "_forward_pre_hooks")}
    inner = {key: vars(value) for key, value in own.items() if key == "processor" and hasattr(value, "__dict__")}
    return [_plain(own), _plain(hooks), _plain(inner)]


def _tensor(tensor: torch.Tensor) -> tuple[str, list[int], str]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return str(tensor.dtype), list(tensor.shape), sha256(memoryview(flat.view(torch.uint8).numpy())).hexdigest()


def _tokenizer(tokenizer: Any) -> Any:
    """Its vocabulary, merges and added tokens. How the last batch was padded and cut is no part of it."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    return [rules, tokenizer.model_max_length, _plain(tokenizer.special_tokens_map)]


def _plain(value: Any) -> Any:
    """A value as JSON, in an order of its own: of what is neither number, text, tensor nor a collection, its class."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, Mapping):
        return dict(sorted(_pairs(value)))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(item)) for item in value)
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _pairs(mapping: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if key not in NOT_MEANT:
            yield str(key), _plain(value)
