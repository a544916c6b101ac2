"""Files of tensors, by their published names: read a tensor at a time, straight into place, and written."""
