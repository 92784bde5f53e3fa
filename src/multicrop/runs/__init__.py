"""The application: the parts of a run, its task, its stream, sweeps, and what a sweep reuses."""
