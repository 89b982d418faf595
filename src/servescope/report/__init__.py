"""Runs to tables and files. Pure: everything here reads a run's directory and nothing else."""
