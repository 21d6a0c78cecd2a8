"""Fused kernels for NVIDIA GPUs, each beside its twin in plain PyTorch."""
