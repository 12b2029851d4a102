"""What runs leave on disk: complete files, outputs that are finished or absent, records of runs, and their errors."""
