"""Analysis of a graph: slots, segments, importance, masks. It reads the model and never changes it."""
