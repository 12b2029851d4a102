"""Zoos that are trained here."""
