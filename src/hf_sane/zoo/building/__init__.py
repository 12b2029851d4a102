"""Build zoos of networks that are trained by this library."""
