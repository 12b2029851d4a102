"""Many networks of one architecture at once: stacked, trained, conditioned, tested on images."""
