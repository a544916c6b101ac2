"""What is added to a published model: LoRA, and the new words of textual inversion."""
