"""Zoos trained by this library."""
