"""Activations and operations as functions of tensors."""
