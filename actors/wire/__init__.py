"""What travels between roles. Column names are known in `records` and nowhere else."""
