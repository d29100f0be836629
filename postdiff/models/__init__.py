"""The models: families, checkpoints, what their folders may say, and loading."""
