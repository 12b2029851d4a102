"""Models as data: build, read, align, window and batch populations of networks."""
