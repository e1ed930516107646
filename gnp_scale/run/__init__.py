"""The run as a whole: its folder, its processes, their stages and history, and console output."""
