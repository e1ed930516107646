"""The run as a whole: its folder, its processes, their stages and history, and what is printed."""
