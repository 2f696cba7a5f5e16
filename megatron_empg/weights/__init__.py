"""A model's weights in three rooms: how tensors map, files that hold them, their way to the engines."""
