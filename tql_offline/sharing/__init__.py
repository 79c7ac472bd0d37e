"""Models to share: a run's policies in one folder, and the object that acts from it."""
