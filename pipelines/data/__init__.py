"""What is generated from and compared with: prompts, captions, images, training pairs."""
