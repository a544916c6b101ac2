"""The networks that are read and written: what each published class, or file of a paper's authors, calls its fields and
tensors."""
