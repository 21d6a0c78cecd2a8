"""What synthetic scans are worth: fidelity, privacy, condition, benefit, each with an interval and a control."""
