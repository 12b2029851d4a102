"""Symmetries read off the graph of any module."""
