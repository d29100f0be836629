"""The metrics: distances between sets of features, encoders that make them, intervals."""
