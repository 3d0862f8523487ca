"""Training from boxes alone: crops, labels, losses, teacher, rounds."""
