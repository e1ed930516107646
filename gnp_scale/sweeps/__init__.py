"""Many runs of one recipe: their grid, queue and Slurm array; tables and plots of runs side by side."""
