"""Objectives as pure functions of tensors, giving per-example values; torch only."""
