"""CLIP score: how well an image fits its prompt (Hessel et al., 2021)."""

import numpy as np

from pipelines.metrics.intervals import Interval, expect_finite, mean_interval


def clip_score(images: np.ndarray, texts: np.ndarray) -> Interval:
    """Mean of `clip_scores` with its 95 % interval over prompts (Student's t). Raises ValueError as that does."""
    return mean_interval(clip_scores(images, texts))


def clip_scores(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """100 * max(cos, 0) of image and text embeddings [N, D], each with its own (Hessel et al., 2021) -> [N].

    Raises: ValueError if their shapes differ, or an embedding is not finite or of length 0.
    """
    if image.shape != text.shape:
        raise ValueError(f"one text an image: got embeddings of shape {image.shape} and {text.shape}")
    image, text = (x.astype(np.float64) / lengths(x) for x in (image, text))
    return 100 * (image * text).sum(1).clip(0)


def lengths(embeddings: np.ndarray) -> np.ndarray:
    """Lengths [N, 1] of embeddings [N, D]. Raises ValueError if one is not finite, or 0: it has no direction."""
    expect_finite(embeddings)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if empty := int((norms == 0).sum()):
        raise ValueError(f"expected embeddings longer than 0, got {empty} of {len(embeddings)} that are not")
    return norms
