"""How the mini models are made, and U-Nets are fine-tuned for mixed resolution."""
