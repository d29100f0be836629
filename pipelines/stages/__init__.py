"""The units of work: embeddings, images, features, scores, latencies, trajectories."""
