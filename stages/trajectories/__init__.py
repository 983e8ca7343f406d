"""Stage `trajectories`: plans, candidate trajectories with their evidence handles, and hard negatives."""
