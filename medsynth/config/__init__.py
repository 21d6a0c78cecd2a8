"""Frozen settings: YAML in, all mistakes out at once."""
