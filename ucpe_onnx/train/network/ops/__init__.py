"""What the operators compute, one module per family; each exports its table as ``OPERATORS``."""
