"""Symmetries of any module, from its graph."""
