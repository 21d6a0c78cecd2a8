"""Noise levels, objectives, guidance, samplers, and the pipeline that generates volumes."""
